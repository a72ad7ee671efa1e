"""Robustness sets on tiny trees in their published layouts, CIFAR-10-C, and the corruptions themselves."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from datamodules import CIFAR10CDataModule, ImageNetRobustnessDataModule
from datamodules.images.cifar10 import CLASSES
from datamodules.robustness.corruptions import CORRUPTIONS, corrupt
from datamodules.robustness.filters import disk, gaussian, plasma, zoom

WNIDS = ["n01440764", "n01443537", "n01484850", "n01491361"]


def write(path: Path, grey: int = 128, size: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (grey,) * 3).save(path)


@pytest.fixture
def imagenet(tmp_path: Path) -> dict[str, str]:
    """One image a class and set; 2 classes in -R, -A and -O; corruptions at severity 1 alone."""
    for wnid in WNIDS:
        write(tmp_path / "imagenet" / "val" / wnid / "a.JPEG")
        write(tmp_path / "c" / "noise" / "gaussian_noise" / "1" / wnid / "a.JPEG")
        write(tmp_path / "c" / "fog" / "1" / wnid / "a.JPEG")
        write(tmp_path / "c" / "saturate" / "1" / wnid / "a.JPEG")
    for name, wnids in (("r", WNIDS[2:]), ("a", WNIDS[:2]), ("o", WNIDS[1:3])):
        for wnid in wnids:
            write(tmp_path / name / wnid / "b.jpg")
    for number in range(4):
        write(tmp_path / "v2" / str(number) / "b.jpeg")
    return {
        "root": str(tmp_path / "imagenet"),
        **{f"imagenet_{name}": str(tmp_path / name) for name in ("c", "r", "a", "o", "v2", "sketch")},
    }


def data_of(imagenet: dict[str, str], **options) -> ImageNetRobustnessDataModule:
    return ImageNetRobustnessDataModule(
        **{
            **imagenet,
            "wnids": WNIDS,
            "severities": (1,),
            "img_size": 32,
            "num_workers": 0,
            "batch_size": 64,
            **options,
        }
    )


def test_every_set_on_disk_in_its_published_layout(imagenet: dict[str, str]) -> None:
    data = data_of(imagenet)
    found = [(one.name, one.part, one.severity, one.classes, one.role) for one in data.test_sets]
    assert found == [
        ("imagenet", "", 0, None, "accuracy"),
        ("imagenet-c", "gaussian_noise", 1, None, "accuracy"),
        ("imagenet-c", "fog", 1, None, "accuracy"),
        ("imagenet-v2", "", 0, None, "accuracy"),
        ("imagenet-r", "", 0, (2, 3), "accuracy"),
        ("imagenet-a", "", 0, (0, 1), "accuracy"),
        ("imagenet-o", "", 0, (1, 2), "in"),
        ("imagenet-o", "", 0, (1, 2), "out"),
    ]
    ((images, (targets, places)),) = list(data.test_dataloader())
    assert images.shape == (4 * 4 + 2 * 4, 3, 32, 32)
    by_set = [targets[places == i].tolist() for i in range(8)]
    assert by_set == [[0, 1, 2, 3]] * 4 + [[2, 3], [0, 1], [1, 2], [1, 2]]


def test_imagenet_c_is_read_as_published_and_the_others_resized(imagenet: dict[str, str]) -> None:
    """Images of -C are what the network reads: a border of one pixel survives. All others: resize by 8/7, crop."""
    frame = np.full((32, 32, 3), 40, np.uint8)
    frame[[0, -1]] = frame[:, [0, -1]] = 255
    for path in (Path(imagenet["root"]) / "val" / WNIDS[0] / "a.JPEG", *Path(imagenet["imagenet_c"]).rglob("a.JPEG")):
        Image.fromarray(frame).save(path, "PNG")
    data = data_of(imagenet, mean=(0, 0, 0), std=(1, 1, 1))
    ((images, (targets, places)),) = list(data.test_dataloader())
    for image in images[(places == 1) | (places == 2)]:
        assert (image * 255).round().byte().permute(1, 2, 0).numpy().tolist() == frame.tolist()
    clean = images[(places == 0) & (targets == 0)][0]
    usual = v2.Compose([v2.Resize(37, v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(32)])
    assert torch.equal((clean * 255).round().byte(), usual(torch.from_numpy(frame).permute(2, 0, 1)))
    # a network of another size reads the whole picture: no part of the published crop is lost
    larger = data_of(imagenet, img_size=64, mean=(0, 0, 0), std=(1, 1, 1))
    ((images, (_, places)),) = list(larger.test_dataloader())
    assert images[places == 1][0][:, [0, -1]].mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"severities": (1, 2)}, "no severity 2 in"),
        ({"wnids": WNIDS[:3]}, "is not a class of the model"),
        ({"imagenet_c": "/nowhere", "root": "/nowhere"}, "needs the clean validation images beside it"),
        ({"imagenet_v2": "REAL"}, "is not a number from 0 to 3"),
        ({"imagenet_c": "REAL"}, "no corruption in"),
    ],
)
def test_mistakes_are_one_line(imagenet: dict[str, str], options: dict, message: str) -> None:
    options = {name: imagenet["imagenet_r"] if value == "REAL" else value for name, value in options.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        data_of(imagenet, **options).setup("test")
    assert "\n" not in str(error.value)


def test_nothing_on_disk_is_one_line(tmp_path: Path) -> None:
    data = ImageNetRobustnessDataModule(
        root=str(tmp_path),
        **{f"imagenet_{name}": str(tmp_path / name) for name in ("c", "r", "a", "o", "v2", "sketch")},
    )
    with pytest.raises(FileNotFoundError, match="none of the robustness sets is on disk"):
        data.setup("test")


# -- CIFAR-10-C ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cifar")
    noise = np.random.default_rng(0)
    for place, name in enumerate(CLASSES):
        for split in ("train", "test"):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                pixels = noise.integers(20 * place, 20 * place + 60, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def cifar_data(cifar: Path, folder: Path, **options) -> CIFAR10CDataModule:
    options = {"corruptions": ["fog", "contrast"], "num_workers": 0, "batch_size": 500, **options}
    return CIFAR10CDataModule(root=str(cifar), corrupted=str(folder), **options)


def test_arrays_are_made_in_the_published_layout_and_read_back(cifar: Path, tmp_path: Path) -> None:
    data = cifar_data(cifar, tmp_path, severities=(1, 5))
    data.prepare_data()
    array = np.load(tmp_path / "contrast.npy")
    assert array.shape == (100, 32, 32, 3) and array.dtype == np.uint8
    assert np.load(tmp_path / "labels.npy").tolist() == [c for _ in range(5) for c in range(10) for _ in range(2)]
    ((images, (targets, places)),) = list(data.test_dataloader())
    assert [(one.part, one.severity) for one in data.test_sets] == [
        ("", 0),
        *((part, severity) for part in ("fog", "contrast") for severity in (1, 5)),
    ]
    assert places.bincount().tolist() == [20] * 5
    assert torch.equal(targets[places == 4], targets[places == 0])
    back = images[places == 4] * torch.tensor(data.std).view(3, 1, 1) + torch.tensor(data.mean).view(3, 1, 1)
    expected = torch.from_numpy(array[80:]).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(back, expected, atol=1e-5, rtol=0)
    before = (tmp_path / "fog.npy").stat().st_mtime_ns
    data.prepare_data()
    assert (tmp_path / "fog.npy").stat().st_mtime_ns == before


def test_the_labels_are_those_of_the_arrays(cifar: Path, tmp_path: Path) -> None:
    """The published arrays are in another order than the folders."""
    np.save(tmp_path / "labels.npy", np.tile(np.arange(20, dtype=np.uint8)[::-1] // 2, 5))
    np.save(tmp_path / "fog.npy", np.zeros((100, 32, 32, 3), np.uint8))
    data = cifar_data(cifar, tmp_path, corruptions=["fog"])
    data.prepare_data()
    ((_, (targets, places)),) = list(data.test_dataloader())
    assert targets[places == 1].tolist() == [9 - i // 2 for i in range(20)]


def test_arrays_of_other_images_are_one_line(cifar: Path, tmp_path: Path) -> None:
    cifar_data(cifar, tmp_path, limit=10).prepare_data()
    with pytest.raises(ValueError, match="holds 50 images and 50 labels, but 20 test images make 100"):
        cifar_data(cifar, tmp_path).setup("test")
    with pytest.raises(ValueError, match="there is no 'fogg'"):
        cifar_data(cifar, tmp_path, corruptions=["fogg"])
    with pytest.raises(FileNotFoundError, match="lookupvit test makes it"):
        cifar_data(cifar, tmp_path / "other").setup("test")


# -- the corruptions -------------------------------------------------------------------------------------------------


def pictures() -> torch.Tensor:
    """Smooth pictures with an edge."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
    one = torch.stack([x, y, (x > 0.5).float()])
    return (255 * torch.stack([0.2 + 0.6 * one, 0.8 - 0.6 * one])).to(torch.uint8)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_each_image_by_its_own_seed(kind: str) -> None:
    images = pictures()
    both = corrupt(images, kind, 3, [4, 7])
    assert both.shape == images.shape and both.dtype == torch.uint8
    assert torch.equal(both[1:], corrupt(images[1:], kind, 3, [7]))  # whatever else is in its batch
    assert not torch.equal(both, images)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_the_worst_severity_is_further_off_than_the_least(kind: str) -> None:
    images = torch.cat([pictures()] * 4)
    errors = [(corrupt(images, kind, s, range(8)).float() - images.float()).abs().mean() for s in (1, 5)]
    # elastic_transform goes from a coarse shift to fine waves: its severities are no such order
    assert kind == "elastic_transform" or errors[1] > errors[0]


def test_noise_has_the_published_strength() -> None:
    grey = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    for kind, severity, std in (("gaussian_noise", 5, 0.10), ("shot_noise", 5, (128 / 255 / 50) ** 0.5)):
        off = corrupt(grey, kind, severity, range(50)).float() / 255 - 128 / 255
        assert off.std().item() == pytest.approx(std, rel=0.02)
        assert abs(off.mean().item() + 0.5 / 255) < 0.002  # truncation takes half a step
    changed = corrupt(grey, "impulse_noise", 5, range(50)) != 128
    assert changed.float().mean().item() == pytest.approx(0.07, rel=0.05)


def test_brightness_contrast_and_jpeg_worked_out_by_hand() -> None:
    image = torch.tensor([100, 50, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8).contiguous()
    # value 100/255 + 0.3 = 0.692: every channel times 1.765
    assert corrupt(image, "brightness", 5, [0])[0, :, 0, 0].tolist() == [176, 88, 0]
    halves = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    halves[..., 4:] = 200
    assert corrupt(halves, "contrast", 2, [0])[0, 0, 0, [0, 7]].tolist() == [50, 150]  # half way to the mean of 100
    file = Image.fromarray(pictures()[0].permute(1, 2, 0).numpy())
    buffer = BytesIO()
    file.save(buffer, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)
    off = corrupt(pictures()[:1], "jpeg_compression", 5, [0])[0].int() - expected.int()
    assert off.abs().max() <= 1  # the truncation of v / 255 * 255


def test_tools_against_references() -> None:
    scipy = pytest.importorskip("scipy.ndimage")
    x = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    blurred = scipy.gaussian_filter(x.double().numpy(), (0, 0, 1.3, 1.3), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(gaussian(x, 1.3).numpy(), blurred, atol=1e-5)
    kernel = disk(1.5, 0.1)
    np.testing.assert_allclose(kernel[1:-1, 1:-1].numpy(), np.pad(np.full((3, 3), 1 / 9), 1), atol=1e-6)
    assert kernel.sum().item() == pytest.approx(1)
    assert torch.equal(zoom(x, 1.0), x)
    middle = x[..., 5:15, 6:18]  # factor 2: the middle half, ends on ends
    np.testing.assert_allclose(
        zoom(x, 2.0).numpy(), scipy.zoom(middle.numpy(), (1, 1, 2, 2), order=1, grid_mode=False), atol=1e-5
    )
    field = plasma([torch.Generator().manual_seed(i) for i in range(2)], (20, 32), 2.0)
    assert field.shape == (2, 20, 32) and field.min() >= 0 and field.max() <= 1
    assert not torch.equal(field[0], field[1])


def test_unknown_corruptions_are_one_line() -> None:
    with pytest.raises(ValueError, match="corruption 'fogg' is unknown"):
        corrupt(pictures(), "fogg", 1, [0, 1])
    with pytest.raises(ValueError, match="severity 6 of fog: choose 1 to 5"):
        corrupt(pictures(), "fog", 6, [0, 1])
