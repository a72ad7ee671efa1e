"""CIFAR-10 from a small tree of its layout, and the rendered demo data set."""

import tarfile

import numpy as np
import pytest
import torch
from conftest import write_tree
from PIL import Image

from datamodules import CIFAR10DataModule, DemoDataModule
from datamodules.demos.shapes import CLASSES, _mask, draw_shape, render_demo
from datamodules.images.cifar10 import CLASSES as CIFAR_CLASSES
from datamodules.images.folder import ImageFolder


@pytest.fixture(scope="module")
def cifar_tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("cifar"), tuple(CIFAR_CLASSES), {"train": 2, "test": 1}, size=32)


@pytest.mark.parametrize("cache", [True, False])
def test_cifar10(cifar_tree, cache):
    data = CIFAR10DataModule(root=str(cifar_tree), batch_size=10, num_workers=0, cache=cache)
    assert (data.num_classes, data.img_size) == (10, (32, 32))
    data.setup("fit")
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (10, 3, 32, 32)
    assert targets.dtype == torch.int64
    (images, targets), *rest = data.val_dataloader()  # the test images, untouched but for the normalisation
    assert not rest
    assert targets.tolist() == list(range(10))
    data.setup("test")
    assert data.test_dataloader().dataset.samples == data.val_dataloader().dataset.samples
    mean, std = torch.tensor(data.mean).view(3, 1, 1), torch.tensor(data.std).view(3, 1, 1)
    source = ImageFolder(cifar_tree / "test")[4][0]
    assert torch.equal(((images[4] * std + mean) * 255).round().byte(), source)
    assert data.class_names[9] == "truck"


def test_cifar10_is_unpacked_once(cifar_tree, tmp_path):
    archive, root = tmp_path / "cifar.tar.xz", tmp_path / "data" / "cifar10"
    with tarfile.open(archive, "w:xz") as tar:
        for split in ("train", "test"):
            tar.add(cifar_tree / split, arcname=split)
    data = CIFAR10DataModule(root=str(root), archive=str(archive), batch_size=10, num_workers=0)
    data.prepare_data()
    archive.unlink()
    data.prepare_data()
    assert sorted(entry.name for entry in root.parent.iterdir()) == ["cifar10"]
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 20


def test_a_missing_or_damaged_archive(tmp_path):
    archive = tmp_path / "cifar.tar.xz"
    data = CIFAR10DataModule(root=str(tmp_path / "root"), archive=str(archive))
    with pytest.raises(FileNotFoundError, match=r"no archive .*cifar\.tar\.xz.*data\.archive"):
        data.prepare_data()
    archive.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"cannot unpack .*cifar\.tar\.xz"):
        data.prepare_data()
    assert not (tmp_path / "root").exists()


def test_the_demo_is_the_same_bytes_for_a_seed(tmp_path):
    def contents(root, seed):
        assert render_demo(root, seed=seed, train_per_class=2, val_per_class=1, size=24)
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}

    first, again, other = contents(tmp_path / "a", 0), contents(tmp_path / "b", 0), contents(tmp_path / "c", 1)
    assert first == again
    assert first.keys() == other.keys()
    assert len(set(first.values()) | set(other.values())) == 60  # 2 x (20 + 10) different pictures
    assert sorted(first) == sorted(
        [f"train/{name}/{number:05d}.jpg" for name in CLASSES for number in range(2)]
        + [f"val/{name}/00000.jpg" for name in CLASSES]
    )


def test_the_demo_is_rendered_once_and_overwrites_nothing(tmp_path):
    sizes = {"train_per_class": 1, "val_per_class": 1, "size": 16}
    assert render_demo(tmp_path / "demo", **sizes)
    assert not render_demo(tmp_path / "demo", **sizes)
    with pytest.raises(ValueError, match=r"rendered with .*'seed': 0.*asked for .*'seed': 5.*set another data\.root"):
        render_demo(tmp_path / "demo", seed=5, **sizes)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ValueError, match="is not empty and holds no demo data"):
        render_demo(tmp_path / "mine", **sizes)
    assert [entry.name for entry in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_demo_starts_again_after_an_interruption(tmp_path):
    (tmp_path / "demo.rendering" / "train" / "arrow").mkdir(parents=True)
    assert render_demo(tmp_path / "demo", train_per_class=1, val_per_class=1, size=16)
    assert not (tmp_path / "demo.rendering").exists()
    assert len(list((tmp_path / "demo" / "train").iterdir())) == 10


def test_the_demo_module_renders_and_reads(tmp_path):
    data = DemoDataModule(str(tmp_path / "demo"), train_per_class=2, val_per_class=1, batch_size=20, num_workers=0)
    assert data.num_classes == 10
    data.prepare_data()
    data.setup("fit")
    assert data.class_names == CLASSES
    images, targets = next(iter(data.train_dataloader()))
    assert images.shape == (20, 3, 48, 48)
    assert targets.bincount().tolist() == [2] * 10  # balanced
    with Image.open(tmp_path / "demo" / "train" / "star" / "00001.jpg") as image:
        assert (image.size, image.mode, image.format) == ((48, 48), "RGB", "JPEG")


@pytest.fixture(scope="module")
def pictures():
    """80 pictures of each class, (10, 80, 32, 32, 3)."""
    return np.array(
        [
            [np.asarray(draw_shape(name, 32, np.random.default_rng([label, number]))) for number in range(80)]
            for label, name in enumerate(CLASSES)
        ],
        dtype=np.float64,
    )


def nearest_centroid(features):
    """Accuracy on the second half of the samples, centroids from the first; features (classes, samples, F)."""
    fit, held = np.split(features, 2, axis=1)
    centroids = fit.mean(axis=1)  # (classes, F)
    distance = np.linalg.norm(held[:, :, None] - centroids[None, None], axis=-1)  # (classes, samples, classes)
    return (distance.argmin(axis=-1) == np.arange(len(features))[:, None]).mean()


def test_colour_and_brightness_do_not_tell_the_class(pictures):
    """Chance is 0.1; 400 held-out pictures, so three standard deviations are 0.045."""
    assert nearest_centroid(pictures.mean(axis=(2, 3))) < 0.15
    corners = pictures[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]  # (10, 80, 4, 3): background in every class
    assert nearest_centroid(corners.mean(axis=2)) < 0.15
    light = pictures.mean(axis=-1, keepdims=True) > 128  # (10, 80, 32, 32, 1): the shape and a little clutter
    shape_colour = (pictures * light).sum(axis=(2, 3)) / light.sum(axis=(2, 3))
    assert nearest_centroid(shape_colour) < 0.15


def test_every_shape_has_one_area():
    areas = [np.mean([draw_mask(name, 40, number).mean() for number in range(40)]) for name in CLASSES]
    expected = 1.7 * (0.3**2 + 0.3 * 0.38 + 0.38**2) / 3  # 1.7 E[r^2], r uniform in 0.3..0.38 of the side
    np.testing.assert_allclose(areas, expected, rtol=0.12)


def draw_mask(name, size, seed):
    return _mask(name, size, np.random.default_rng([CLASSES.index(name), seed]))


def test_the_shape_tells_the_class():
    """The outline alone (what is light against dark, or dark against light) is told by the nearest mean outline."""
    masks = np.array([[draw_mask(name, 24, number).ravel() for number in range(60)] for name in CLASSES])
    assert nearest_centroid(masks) > 0.9
