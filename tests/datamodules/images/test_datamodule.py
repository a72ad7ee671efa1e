"""The DataModule over trees on disk: what it yields, in which order, and what it says of a wrong tree."""

import inspect
import shutil

import pytest
import torch
from conftest import TREE_CLASSES, write_image, write_tree
from lightning.pytorch import seed_everything

import datamodules
from datamodules import ImageFolderDataModule
from datamodules.images.folder import decode_rgb
from datamodules.images.transforms import eval_transform, transform_options
from datamodules.loading.datamodule import BaseDataModule


def module(root, **options):
    return ImageFolderDataModule(**{"root": str(root), "img_size": 32, "batch_size": 4, "num_workers": 0, **options})


def test_what_it_tells_before_and_after_setup(image_tree):
    data = module(image_tree, img_size=(32, 48))
    assert (data.num_classes, data.img_size, data.batch_size, data.num_workers) == (3, (32, 48), 4, 0)
    assert data.mean == (0.485, 0.456, 0.406)
    data.setup("fit")
    assert data.classes == list(TREE_CLASSES)
    assert data.class_names == ["tench", "goldfish", "great white shark"]


def test_num_classes_is_known_without_a_tree_if_given(tmp_path):
    assert module(tmp_path / "gone", num_classes=7).num_classes == 7
    with pytest.raises(FileNotFoundError, match="gone"):
        _ = module(tmp_path / "gone").num_classes


def test_batches(image_tree):
    data = module(image_tree, batch_size=5, val_batch_size=4)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert [(images.shape, images.dtype) for images, _ in batches] == [
        ((5, 3, 32, 32), torch.float32)
    ] * 2  # 12 = 5 + 5 + 2
    assert all(targets.dtype == torch.int64 for _, targets in batches)
    assert [len(images) for images, _ in data.val_dataloader()] == [4, 2]
    assert sum(len(images) for images, _ in module(image_tree, batch_size=5, drop_last=False).train_dataloader()) == 12


def test_validation_is_the_tree_in_order_through_the_evaluation_transform(image_tree):
    data = module(image_tree, recipe="deit")
    images, targets = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    transform = eval_transform((32, 32), transform_options("deit"))
    paths = [image_tree / "val" / name / f"{number}.JPEG" for name in TREE_CLASSES for number in range(2)]
    assert torch.equal(images, torch.stack([transform(decode_rgb(path)) for path in paths]))
    assert targets.tolist() == [0, 0, 1, 1, 2, 2]


def test_each_pipeline_is_built_once_for_data_set_and_collate(image_tree, monkeypatch):
    built = []
    for name in ("train_transform", "eval_transform"):
        original = getattr(datamodules.images.base, name)
        counted = lambda *args, name=name, original=original: (built.append(name), original(*args))[1]  # noqa: E731
        monkeypatch.setattr(datamodules.images.base, name, counted)
    data = module(image_tree, val_fraction=0.25)
    for loader in (data.train_dataloader, data.val_dataloader, data.test_dataloader, data.bank_dataloader):
        next(iter(loader()))
    assert sorted(built) == ["eval_transform", "train_transform"]


def test_every_datamodule_has_the_shared_arguments_from_one_base():
    for name in datamodules.__all__:
        kind = getattr(datamodules, name)
        assert issubclass(kind, BaseDataModule)
        homes = [each.__name__ for each in kind.__mro__ if "persistent_workers" in own_arguments(each)]
        assert homes == ["BaseDataModule"], name


def own_arguments(kind):
    return inspect.signature(vars(kind)["__init__"]).parameters if "__init__" in vars(kind) else {}


def test_soft_targets_in_training_only(image_tree):
    data = module(image_tree, recipe="deit")
    _, targets = next(iter(data.train_dataloader()))
    assert targets.shape == (4, 3)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
    _, targets = next(iter(data.val_dataloader()))
    assert targets.dtype == torch.int64


@pytest.mark.parametrize("workers", [0, 2])
def test_a_seed_fixes_every_training_batch(image_tree, workers):
    def epoch(seed):
        seed_everything(seed, workers=True, verbose=False)
        loader = module(image_tree, num_workers=workers, recipe="deit").train_dataloader()
        return [torch.cat([tensor.flatten() for tensor in batch]) for batch in loader]

    first, again, other = torch.cat(epoch(1)), torch.cat(epoch(1)), torch.cat(epoch(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_workers_default_to_the_machine_and_can_be_set(image_tree):
    assert 1 <= module(image_tree, num_workers=None).val_dataloader().num_workers <= 16
    loader = module(image_tree, num_workers=2, prefetch_factor=5).val_dataloader()
    assert (loader.num_workers, loader.prefetch_factor, loader.persistent_workers) == (2, 5, True)
    assert module(image_tree, num_workers=0, prefetch_factor=5).val_dataloader().prefetch_factor is None


def test_the_test_split(new_tree):
    data = module(new_tree)
    data.setup("test")
    assert len(data.test_dataloader().dataset) == 6  # no test/: the validation images
    shutil.copytree(new_tree / "train", new_tree / "test")
    data = module(new_tree)
    data.setup("test")
    assert len(data.test_dataloader().dataset) == 12
    assert len(module(new_tree, test_split="val").test_dataloader().dataset) == 6


def test_val_fraction_holds_out_training_images_by_seed(new_tree):
    shutil.rmtree(new_tree / "val")

    def files(seed):
        data = module(new_tree, val_fraction=0.25, seed=seed, recipe="deit", cache=True)
        data.setup("fit")
        parts = [data.train_dataloader().dataset, data.val_dataloader().dataset]
        assert parts[0].dataset.images.data_ptr() == parts[1].dataset.images.data_ptr()  # one cache in memory
        return [[part.dataset.samples[index][0] for index in part.indices] for part in parts], parts

    (train, val), parts = files(0)
    assert (len(train), len(val)) == (9, 3)
    assert sorted(train + val) == [str(path) for path in sorted((new_tree / "train").rglob("*.JPEG"))]
    assert files(0)[0] == [train, val]
    assert files(1)[0] != [train, val]
    assert torch.equal(parts[1][0][0], parts[1][0][0])  # nothing random in the held-out images
    assert not torch.equal(parts[0][0][0], parts[0][0][0])


@pytest.mark.parametrize("form", ["image", "folder", "glob"])
def test_predict_takes_an_image_a_folder_or_a_glob(image_tree, form):
    folder = image_tree / "val" / TREE_CLASSES[1]
    path = {"image": folder / "1.JPEG", "folder": folder, "glob": f"{image_tree}/val/*/1.JPEG"}[form]
    expected = {
        "image": [folder / "1.JPEG"],
        "folder": [folder / "0.JPEG", folder / "1.JPEG"],
        "glob": [image_tree / "val" / name / "1.JPEG" for name in TREE_CLASSES],
    }[form]
    data = module(image_tree, predict_path=str(path), batch_size=2)
    data.setup("predict")
    images, paths = [], []
    for batch_images, batch_paths in data.predict_dataloader():
        images.append(batch_images)
        paths += batch_paths
    assert paths == [str(path) for path in expected]
    transform = eval_transform((32, 32), data.options)
    assert torch.equal(torch.cat(images), torch.stack([transform(decode_rgb(path)) for path in expected]))


def test_colour_modes_go_through_the_whole_reader(new_tree, tmp_path):
    from PIL import Image

    mixed = tmp_path / "mixed"
    mixed.mkdir()
    with Image.open(new_tree / "train" / TREE_CLASSES[0] / "0.JPEG") as image:
        image.convert("L").save(mixed / "gray.jpg")
        image.convert("CMYK").save(mixed / "cmyk.jpg")
        image.quantize(16).save(mixed / "palette.png")
        image.convert("RGBA").save(mixed / "alpha.png")
    images, paths = next(iter(module(new_tree, predict_path=str(mixed)).predict_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert [path.rsplit("/", 1)[1] for path in paths] == ["alpha.png", "cmyk.jpg", "gray.jpg", "palette.png"]
    assert (images[0] - images[1]).abs().mean() < 0.2  # the same picture


def set_up(data, stage="fit"):
    data.setup(stage)
    data.train_dataloader()


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_missing_root(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        set_up(module(tmp_path / "nowhere"))
    text = one_line(error)
    assert f"{str(tmp_path / 'nowhere' / 'train')!r}" in text
    assert "data.root" in text


def test_a_missing_validation_folder(new_tree):
    (new_tree / "val").rename(new_tree / "test")
    with pytest.raises(FileNotFoundError) as error:
        set_up(module(new_tree))
    text = one_line(error)
    assert f"{str(new_tree)!r} holds test/, train/" in text
    assert "data.val_split" in text
    assert "data.val_fraction" in text
    set_up(module(new_tree, val_split="test"))


def test_splits_with_different_classes(new_tree):
    write_image(new_tree / "val" / "n02000000" / "a.jpg", 8, 8, 0)
    shutil.rmtree(new_tree / "val" / TREE_CLASSES[0])
    with pytest.raises(ValueError, match="class folders") as error:
        set_up(module(new_tree))
    text = one_line(error)
    assert f"1 missing ({TREE_CLASSES[0]})" in text
    assert "1 too many (n02000000)" in text
    assert str(new_tree / "val") in text


def test_an_empty_class_folder(new_tree):
    (new_tree / "val" / TREE_CLASSES[2] / "0.JPEG").unlink()
    (new_tree / "val" / TREE_CLASSES[2] / "1.JPEG").unlink()
    with pytest.raises(ValueError, match="no images in the class folder") as error:
        set_up(module(new_tree))
    assert str(new_tree / "val" / TREE_CLASSES[2]) in one_line(error)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_classes": 10}, r"data\.num_classes is 10, but .* has 3 class folders .*; set data\.num_classes=3"),
        ({"batch_size": 13}, r"12 training images on 1 device\(s\) do not fill one batch of 13; .*drop_last=false"),
        ({"batch_size": 0}, r"data\.batch_size must be at least 1"),
        ({"img_size": 0}, r"data\.img_size"),
        ({"num_workers": -1}, r"data\.num_workers"),
        ({"val_fraction": 1.0}, r"data\.val_fraction"),
        ({"recipe": "dei"}, r"unknown recipe 'dei': did you mean 'deit'"),
    ],
)
def test_a_wrong_option(image_tree, options, text):
    with pytest.raises(ValueError, match=text) as error:
        set_up(module(image_tree, **options))
    one_line(error)


def test_predict_without_a_path(image_tree):
    with pytest.raises(ValueError, match=r"set data\.predict_path"):
        module(image_tree).setup("predict")


@pytest.mark.filterwarnings("ignore:left out")
def test_corrupt_images_are_counted_at_the_end(new_tree):
    path = new_tree / "val" / TREE_CLASSES[0] / "0.JPEG"
    path.write_bytes(path.read_bytes()[:100])
    data = module(new_tree, skip_corrupt=True)
    assert sum(len(images) for images, _ in data.val_dataloader()) == 5
    with pytest.warns(UserWarning, match=r"1 corrupt images were left out of val: .*0\.JPEG"):
        data.teardown("validate")


def test_names_of_other_folders(tmp_path):
    tree = write_tree(tmp_path, ("great_dane", "cat"), {"train": 1}, size=8)
    assert module(tree).class_names == ["cat", "great dane"]
