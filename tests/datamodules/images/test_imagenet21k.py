"""ImageNet-21k and 21k-P: published lists, tiny trees in the published layout."""

from pathlib import Path

import pytest
from conftest import write_image

import datamodules.images.imagenet21k
from datamodules import ImageNet21kDataModule
from datamodules.images.names import imagenet_wnids

# stand-ins for the lists: 21k-P is a part of the whole
LISTS = {
    "full": ["n00004475", "n01440764", "n01443537", "n02084071"],
    "p": ["n01440764", "n02084071"],
    "p_winter21": ["n01443537"],
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datamodules.images.imagenet21k, "wnids_of", LISTS.__getitem__)
    for split, count in (("train", 3), ("val", 1)):
        for place, wnid in enumerate(LISTS["full"]):
            for number in range(count):
                write_image(tmp_path / split / wnid / f"{wnid}_{number}.JPEG", 40, 32, 10 * place + number)
    return tmp_path


def module(root: Path, **options) -> ImageNet21kDataModule:
    return ImageNet21kDataModule(**{"root": str(root), "img_size": 32, "batch_size": 2, "num_workers": 0, **options})


def test_the_published_lists() -> None:
    lists = {name: datamodules.images.imagenet21k.wnids_of(name) for name in datamodules.images.imagenet21k.SUBSETS}
    assert {name: len(wnids) for name, wnids in lists.items()} == {"full": 21841, "p": 11221, "p_winter21": 10450}
    assert all(wnids == sorted(set(wnids)) for wnids in lists.values())
    assert set(lists["p"]) | set(lists["p_winter21"]) <= set(lists["full"])
    assert set(imagenet_wnids()) - set(lists["full"]) == {"n04399382"}  # teddy: not of the fall 2011 release


def test_the_whole_and_its_pruned_part_from_one_tree(tree: Path) -> None:
    for subset, images in (("full", 12), ("p", 6), ("p_winter21", 3)):
        data = module(tree, subset=subset)
        data.setup("fit")
        train, val = data.train_dataloader(), data.val_dataloader()
        assert data.num_classes == len(LISTS[subset]) and len(train.dataset) == images
        for dataset in (train.dataset, val.dataset):
            for path, label in dataset.samples:
                assert Path(path).parent.name == LISTS[subset][label]
        batch, labels = next(iter(val))
        assert batch.shape[1:] == (3, 32, 32) and int(labels.max()) < data.num_classes


def test_held_out_images_where_there_is_no_val(tree: Path) -> None:
    data = module(tree, val_fraction=0.25)
    data.setup("fit")
    assert (len(data.train_dataloader().dataset), len(data.val_dataloader().dataset)) == (9, 3)


def test_validation_may_lack_classes_training_may_not(tree: Path) -> None:
    for path in (tree / "val" / "n02084071").iterdir():
        path.unlink()
    (tree / "val" / "n02084071").rmdir()
    data = module(tree)
    data.setup("fit")
    assert len(data.val_dataloader().dataset) == 3
    (tree / "train" / "n02084071").rename(tree / "n02084071")
    with pytest.raises(
        ValueError, match=r"1 of the 4 classes of data\.subset=full have no folder .*n02084071"
    ) as error:
        module(tree).setup("fit")
    assert "\n" not in str(error.value)


def test_folders_that_are_no_classes(tree: Path) -> None:
    write_image(tree / "train" / "dogs" / "a.jpg", 32, 32, 1)
    with pytest.raises(ValueError, match=r"1 folders .* no wnids of ImageNet-21k, 'dogs' for one"):
        module(tree, subset="p").setup("fit")


def test_an_empty_class_folder(tree: Path) -> None:
    for path in (tree / "train" / "n01440764").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"no images in 1 class folders, .*n01440764"):
        module(tree, subset="p").setup("fit")


@pytest.mark.parametrize(
    "option, message", [({"subset": "q"}, "valid: full, p, p_winter21"), ({"cache": True}, "cache")]
)
def test_wrong_options(tmp_path: Path, option: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **option)
