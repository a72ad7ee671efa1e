"""Semantic masks from folders and in the layouts of benchmarks: batches, resume, and what is said of bad files."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_trees import CAMVID, blocks, mask_tree, write_json, write_pair
from lightning.pytorch import seed_everything
from PIL import Image
from torchvision.transforms.v2 import functional as F

from datamodules import (
    ADE20KDataModule,
    CityscapesDataModule,
    COCOPanopticDataModule,
    COCOStuffDataModule,
    DenseScenesDataModule,
    MaskFolderDataModule,
    VOCSegmentationDataModule,
)
from datamodules.dense.masks import palette_of
from lookupvit.cli.main import main


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return mask_tree(tmp_path / "masks")


def module(root, kind=MaskFolderDataModule, **options):
    return kind(**{"root": str(root), "img_size": 32, "batch_size": 2, "num_workers": 0, **options})


def test_batches(tree):
    data = module(tree, color_jitter=0.3)
    assert (data.num_classes, data.class_names, data.ignore_index) == (4, ["ground", "red", "green", "blue"], 255)
    assert data.palette == [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]  # Pascal VOC's 1 to 4
    batches = list(data.train_dataloader())
    assert len(batches) == 2
    for batch in batches:
        assert (batch["images"].shape, batch["images"].dtype) == ((2, 3, 32, 32), torch.float32)
        assert (batch["masks"].shape, batch["masks"].dtype) == ((2, 32, 32), torch.int64)
        for image, mask, (height, width) in zip(batch["images"], batch["masks"], batch["sizes"].tolist(), strict=True):
            assert (image[:, height:] == 0).all() and (image[:, :, width:] == 0).all()
            assert (mask[height:] == 255).all() and (mask[:, width:] == 255).all()
            assert mask[:height, :width].max() < 4


def test_evaluation_is_whole_images_padded_to_the_largest(tree):
    data = module(tree, val_batch_size=3)
    (batch,) = data.val_dataloader()
    assert batch["sizes"].tolist() == [[40, 56], [43, 54], [46, 52]]
    assert batch["images"].shape == (3, 3, 46, 56) and batch["masks"].shape == (3, 46, 56)
    for row, (height, width) in enumerate(batch["sizes"].tolist()):
        labels = torch.from_numpy(blocks(height, width, row)).long()
        assert torch.equal(batch["masks"][row, :height, :width], labels)
        assert (batch["masks"] == 255).sum() == sum(46 * 56 - h * w for h, w in batch["sizes"].tolist())
        plain = F.pil_to_tensor(Image.open(batch["files"][row])) / 255
        expected = F.normalize(plain, list(data.mean), list(data.std))
        torch.testing.assert_close(batch["images"][row, :, :height, :width], expected)
    small = next(iter(module(tree, short_side=20, val_batch_size=1).val_dataloader()))
    assert small["images"].shape == (1, 3, 20, 28)
    (batch,) = module(tree, eval_size=(24, 36), val_batch_size=3).val_dataloader()
    assert batch["masks"].shape == (3, 24, 36)
    assert module(tree).dataset("test") is not None  # the validation images


def test_a_run_goes_on_in_the_middle_of_an_epoch(tree):
    seed_everything(3, verbose=False)
    whole = list(module(tree, color_jitter=0.4).train_dataloader())
    loader = module(tree, color_jitter=0.4).train_dataloader()
    next(iter(loader))
    resumed = module(tree, color_jitter=0.4, num_workers=2).train_dataloader()
    resumed.load_state_dict({**loader.state_dict(), "batches": 1})
    (rest,) = list(resumed)
    assert rest["files"] == whole[1]["files"] and not set(rest["files"]) & set(whole[0]["files"])
    assert torch.equal(rest["images"], whole[1]["images"]) and torch.equal(rest["masks"], whole[1]["masks"])


def test_ranks_share_an_epoch(tree):
    from types import SimpleNamespace

    files = []
    for rank in range(2):
        data = module(tree, batch_size=1)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, num_devices=1)
        files.append([batch["files"][0] for batch in data.train_dataloader()])
    assert len(files[0]) == len(files[1]) == 2 and len({*files[0], *files[1]}) == 4


def test_prediction_keeps_a_place_for_a_damaged_file(tree):
    folder = tree / "images" / "val"
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:60])
    data = module(tree, predict_path=str(folder), val_batch_size=3)
    (batch,) = data.predict_dataloader()
    assert set(batch) == {"images", "sizes", "files", "original_sizes"}
    assert [Path(name).name for name in batch["files"]] == ["0.png", "1.png", "2.png"]
    errors = [getattr(name, "error", None) for name in batch["files"]]
    assert errors[0] is None and "cannot decode" in errors[1] and errors[2] is None
    assert batch["sizes"].tolist() == [[40, 56], [32, 32], [46, 52]] and batch["images"].shape == (3, 3, 46, 56)
    half = next(iter(module(tree, predict_path=str(folder), short_side=20).predict_dataloader()))
    assert half["sizes"].tolist()[0] == [20, 28] and half["original_sizes"].tolist()[0] == [40, 56]


def save(tree: Path, pixels: np.ndarray, name: str = "masks/train/2.png", **options: str) -> None:
    Image.fromarray(pixels, **options).save(tree / name)


BAD = {
    "damaged image": (lambda t: (t / "images/train/2.png").write_bytes(b"\x89PNG"), "images/train/2.png"),
    "damaged mask": (lambda t: (t / "masks/train/2.png").write_bytes(b"\x89PNG"), "cannot decode the mask .*2.png.*"),
    "another size": (
        lambda t: save(t, np.zeros((9, 11), np.uint8)),
        r"the mask .*2\.png' has 11 x 9 pixels, its image .*2\.png' 52 x 46 .*; give both one size",
    ),
    "class outside": (
        lambda t: save(t, np.full((46, 52), 9, np.uint8)),
        r"the mask .*2\.png' has the number 9 at 2392 pixels; there are 4 classes, numbered 0 to 3, and 255 is "
        r"ignored: correct the mask, or name numbers without a class in data\.unlabelled",
    ),
    "colours": (
        lambda t: save(t, np.zeros((46, 52, 3), np.uint8)),
        r"the mask .*2\.png' has RGB pixels, colours in place of class numbers; save one number per pixel",
    ),
    "missing mask": (lambda t: (t / "masks/train/2.png").unlink(), r"no mask .*2\.png'; add it"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_one_line_and_can_be_left_out(kind, tree, tmp_path, capsys):
    damage, says = BAD[kind]
    damage(tree)
    data = module(tree, batch_size=5)
    error = FileNotFoundError if kind == "missing mask" else ValueError
    with pytest.raises(error) as raised:
        list(data.train_dataloader())
    assert "\n" not in str(raised.value) and "2.png" in str(raised.value)
    if kind not in ("missing mask", "damaged image"):
        assert re.search(says, str(raised.value))
    listed = tmp_path / "bad.txt"
    argv = ["check-data", "--data", "MaskFolderDataModule", "--data.root", str(tree), "--output", str(listed)]
    assert main(argv) == 1
    assert "8 files, 1 bad" in capsys.readouterr().out
    (line,) = listed.read_text().splitlines()
    assert line.startswith(str(tree / "images/train/2.png") + "\t") and re.search(says, line)
    (batch,) = module(tree, batch_size=4, exclude=str(listed)).train_dataloader()
    assert sorted(Path(name).name for name in batch["files"]) == ["0.png", "1.png", "3.png", "4.png"]
    if kind != "missing mask":
        with pytest.warns(UserWarning, match="left out: "):
            (batch,) = module(tree, batch_size=5, skip_corrupt=True).train_dataloader()
        assert len(batch["files"]) == 4


def test_numbers_without_a_class_and_other_modes_of_a_mask(tree):
    labels = np.full((46, 52), 9, np.uint8)
    labels[:5] = 2
    palette = Image.fromarray(labels, mode=None).convert("P")
    palette.putpalette([5, 4, 3] * 256)
    for mask in (Image.fromarray(labels), palette, Image.fromarray(labels.astype(np.uint16))):
        mask.save(tree / "masks/val/2.png")
        *_, batch = module(tree, val_batch_size=1, unlabelled=9).val_dataloader()
        assert batch["masks"].unique().tolist() == [2, 255] and (batch["masks"] == 2).sum() == 5 * 52


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda t: (t / "classes.txt").unlink(),
            r"no .*classes\.txt'.*write it, with the name of a class",
        ),
        (lambda t: (t / "classes.txt").write_text("a\na\n"), "has the class 'a' twice"),
        (lambda t: (t / "classes.txt").write_text(""), "names no class"),
        (lambda t: shutil.rmtree(t / "masks/train"), r"no folder .*masks/train'"),
        (lambda t: shutil.rmtree(t / "images"), r"no folder .*images/train'"),
        (
            lambda t: (t / "images/train/1.png").unlink(),
            r"1 masks of the split 'train' have no image.*1\.png'",
        ),
        (lambda t: shutil.copy(t / "images/train/1.png", t / "images/train/1.bmp"), "have one name"),
    ],
)
def test_a_wrong_layout_is_one_line(change, says, tree):
    change(tree)
    with pytest.raises((ValueError, FileNotFoundError), match=says) as raised:
        module(tree).setup("fit")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": (2.0, 0.5)}, r"data\.scale needs two positive factors"),
        ({"eval_size": 0}, r"data\.eval_size"),
        ({"eval_size": 8, "short_side": 8}, "set one of them"),
        ({"max_class_ratio": 0}, r"data\.max_class_ratio"),
        ({"unlabelled": -1}, r"data\.unlabelled"),
    ],
)
def test_wrong_options_are_one_line(options, says):
    with pytest.raises(ValueError, match=says):
        module("gone", **options)
    assert module("gone").num_workers == 0


def test_num_classes_and_palette_are_checked(tree):
    with pytest.raises(ValueError, match=r"data\.num_classes=3, but .*classes\.txt' names 4"):
        module(tree, num_classes=3).setup("fit")
    with pytest.raises(ValueError, match=r"data\.palette has 1 colours for 4 classes"):
        _ = module(tree, palette=[[1, 2, 3]]).palette


# -- benchmarks ------------------------------------------------------------------------------------------------------


def only_batch(data):
    data.setup("fit")
    return next(iter(data.val_dataloader()))


def test_ade20k(tmp_path):
    labels = np.array([[0, 1, 2, 150]], np.uint8).repeat(4, 0)
    for split in ("training", "validation"):
        write_pair(tmp_path / "images" / split / "A.jpg", tmp_path / "annotations" / split / "A.png", labels)
    names = "".join(f"{k}\t0.1\t5\t6\tname {k}, other\n" for k in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n" + names)
    data = module(tmp_path, ADE20KDataModule, batch_size=1)
    assert data.num_classes == 150 and data.class_names[0] == "name 1" and len(data.palette) == 150
    assert only_batch(data)["masks"][0, 0].tolist() == [255, 0, 1, 149]
    save(tmp_path, np.full((4, 4), 151, np.uint8), "annotations/validation/A.png")
    with pytest.raises(ValueError, match=r"has the number 151 .* there are 150 classes, numbered 0 to 150"):
        only_batch(module(tmp_path, ADE20KDataModule, batch_size=1))


def test_cityscapes(tmp_path):
    labels = np.array([[0, 7, 8, 10, 33, 255]], np.uint8).repeat(4, 0)  # unlabelled, road, sidewalk, rail track, ...
    for split in ("train", "val"):
        stem = f"{split}/ulm/ulm_000000_000019"
        image = tmp_path / "leftImg8bit" / f"{stem}_leftImg8bit.png"
        write_pair(image, tmp_path / "gtFine" / f"{stem}_gtFine_labelIds.png", labels)
        shutil.copy(image, tmp_path / "gtFine" / f"{stem}_gtFine_color.png")
    data = module(tmp_path, CityscapesDataModule, batch_size=1)
    assert (data.num_classes, data.class_names[11], data.palette[0]) == (19, "person", (128, 64, 128))
    assert only_batch(data)["masks"][0, 0].tolist() == [255, 0, 1, 255, 18, 255]
    (tmp_path / "gtFine/train/ulm/ulm_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images of the split 'train' have no mask.*_labelIds\.png"):
        module(tmp_path, CityscapesDataModule, batch_size=1).setup("fit")


def test_voc(tmp_path):
    home = tmp_path / "VOCdevkit" / "VOC2012"
    labels = np.array([[0, 15, 20, 255]], np.uint8).repeat(4, 0)
    for name, folder in (("2007_1", "SegmentationClassAug"), ("2007_2", "SegmentationClassAug"), ("2007_3", "")):
        write_pair(home / f"JPEGImages/{name}.jpg", home / (folder or "SegmentationClass") / f"{name}.png", labels)
    lists = home / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainaug.txt").write_text("/JPEGImages/2007_1.jpg /SegmentationClassAug/2007_1.png\n2007_2\n")
    (lists / "val.txt").write_text("2007_3\n")
    data = module(tmp_path, VOCSegmentationDataModule, batch_size=1)
    assert (data.num_classes, data.class_names[15], data.palette[:2]) == (21, "person", [(0, 0, 0), (128, 0, 0)])
    assert only_batch(data)["masks"][0, 0].tolist() == [0, 15, 20, 255]
    assert len(data.dataset("train")) == 2
    (lists / "val.txt").write_text("../../2007_3\n")
    with pytest.raises(ValueError, match=r"a path below the folder, without \.\."):
        module(tmp_path, VOCSegmentationDataModule).setup("validate")


def test_palette_is_pascal_vocs():
    assert palette_of(20)[-1] == (0, 64, 128) and palette_of(15)[-1] == (192, 128, 128)


def test_coco_stuff(tmp_path):
    labels = np.array([[0, 89, 91, 181, 255]], np.uint8).repeat(4, 0)
    for split in ("train2017", "val2017"):
        write_pair(tmp_path / split / "1.jpg", tmp_path / "stuffthingmaps" / split / "1.png", labels)
    data = module(tmp_path, COCOStuffDataModule, batch_size=1)
    row = only_batch(data)["masks"][0, 0].tolist()
    assert [data.class_names[label] for label in row[:-1]] == ["person", "toothbrush", "banner", "wood"]
    assert (row, data.num_classes) == ([0, 79, 80, 170, 255], 171)


def test_panoptic(tmp_path):
    numbers = np.array([[0, 300, 70000, 5]]).repeat(4, 0)
    png = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], -1).astype(np.uint8)
    categories = [{"id": 9, "name": "sky", "color": [1, 2, 3]}, {"id": 4, "name": "cat", "color": [4, 5, 6]}]
    segments = [{"id": 300, "category_id": 9}, {"id": 70000, "category_id": 4}, {"id": 5, "category_id": 9}]
    for split in ("train2017", "val2017"):
        masks = tmp_path / "annotations" / f"panoptic_{split}"
        write_pair(tmp_path / split / "1.jpg", masks / "1.png", np.ones((4, 4), np.uint8))
        save(tmp_path, png, f"annotations/panoptic_{split}/1.png")
        item = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
        content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [item], "categories": categories}
        write_json(tmp_path / "annotations" / f"panoptic_{split}.json", content)
    data = module(tmp_path, COCOPanopticDataModule, batch_size=1)
    assert (data.class_names, data.palette) == (["cat", "sky"], [(4, 5, 6), (1, 2, 3)])
    assert only_batch(data)["masks"][0, 0].tolist() == [255, 1, 0, 1]
    save(tmp_path, png + 1, "annotations/panoptic_val2017/1.png")
    with pytest.raises(ValueError, match=r"has the segment 65793, which its JSON does not name"):
        only_batch(module(tmp_path, COCOPanopticDataModule, batch_size=1))


# -- real and rendered ones ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not here")
def test_camvid():
    data = module(CAMVID, unlabelled=11, img_size=(240, 320), batch_size=4)
    data.setup()
    assert data.num_classes == 11
    assert [len(data.dataset(name)) for name in ("train", "val", "test")] == [367, 101, 233]
    batch = next(iter(data.train_dataloader()))
    assert batch["images"].shape == (4, 3, 240, 320) and set(batch["masks"].unique().tolist()) <= {*range(11), 255}


def test_scenes_have_exact_masks(tmp_path):
    data = module(tmp_path / "scenes", DenseScenesDataModule, train_images=4, val_images=2, size=48, img_size=48)
    data.prepare_data()
    assert data.class_names == ["background", "circle", "square", "triangle"]
    boxes = json.loads((tmp_path / "scenes/annotations/instances_val.json").read_text())["annotations"]
    batch = next(iter(data.val_dataloader()))
    areas = {label: sum(item["area"] for item in boxes if item["category_id"] == label) for label in (1, 2, 3)}
    assert {label: int((batch["masks"] == label).sum()) for label in areas} == areas
    bright = batch["images"].amax(1)  # objects are bright, the ground is dark
    assert bright[batch["masks"] > 0].mean() > bright[batch["masks"] == 0].mean() + 1.5
