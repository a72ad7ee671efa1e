"""Boxes and instance masks from COCO's JSON and YOLO's texts: batches, resume, and what is said of bad files."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dense_trees import PENNFUDAN, change, coco_tree, run_lengths
from lightning.pytorch import seed_everything
from PIL import Image
from pycocotools import mask as coco

from datamodules import COCOInstancesDataModule, DenseScenesInstancesDataModule, YOLODataModule
from datamodules.dense.rle import decode_segmentation
from datamodules.dense.rle import run_lengths as decoded_runs
from lookupvit.cli.main import main


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return coco_tree(tmp_path / "coco")


def module(root, kind=COCOInstancesDataModule, **options):
    return kind(**{"root": str(root), "img_size": 40, "batch_size": 2, "num_workers": 0, **options})


def test_evaluation_gives_the_annotations(tree):
    data = module(tree, val_batch_size=4)
    assert (data.num_classes, data.class_names, data.category_ids) == (2, ["disc", "block"], [3, 7])
    (batch,) = data.val_dataloader()
    assert [Path(name).name for name in batch["files"]] == [f"{n:012d}.jpg" for n in range(101, 105)]
    first, *_, last = batch["targets"]
    assert batch["images"][0].shape == (3, 48, 64) and batch["images"][0].dtype == torch.float32
    assert first["boxes"].tolist() == [[4, 6, 16, 14], [30, 10, 50, 30], [10, 40, 30, 44]]
    assert first["labels"].tolist() == [2, 1, 2] and first["labels"].dtype == torch.int64
    assert first["iscrowd"].tolist() == [0, 0, 1] and first["image_id"] == 101
    assert first["orig_size"].tolist() == [48, 64]
    assert first["masks"].shape == (3, 48, 64) and first["masks"].dtype == torch.uint8
    assert first["masks"].flatten(1).sum(1).tolist() == first["area"].tolist()
    assert type(first["boxes"]) is torch.Tensor and type(first["masks"]) is torch.Tensor
    for box, mask in zip(first["boxes"], first["masks"], strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (last["boxes"].shape, last["masks"].shape, last["labels"].shape) == ((0, 4), (0, 48, 64), (0,))


def test_evaluation_resizes_boxes_masks_and_areas(tree):
    image, target = (module(tree, short_side=96).dataset("val")[0][place] for place in (0, 1))
    assert image.shape == (3, 96, 128) and target["masks"].shape == (3, 96, 128)
    assert target["boxes"][0].tolist() == [8, 12, 32, 28] and target["area"][0] == 4 * 96
    assert target["orig_size"].tolist() == [48, 64]
    assert module(tree, short_side=96, max_size=100).dataset("val")[0][0].shape == (3, 75, 100)


def test_training_batches(tree):
    shapes = set()
    for batch in [*module(tree).train_dataloader(), *module(tree, masks=False).train_dataloader()]:
        for image, target in zip(batch["images"], batch["targets"], strict=True):
            shapes.add(tuple(image.shape))
            height, width = image.shape[-2:]
            count = len(target["boxes"])
            assert max(height, width) <= 40 and count <= 2  # never the crowd
            assert all(len(target[name]) == count for name in ("labels", "iscrowd", "area"))
            assert (target["boxes"][:, 2] <= width).all() and (target["boxes"][:, 3] <= height).all()
            assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
            if "masks" in target:
                assert target["masks"].shape == (count, height, width) and (target["iscrowd"] == 0).all()
    assert len(shapes) > 2
    assert len(module(tree).dataset("train")) == 4 and len(module(tree, filter_empty=True).dataset("train")) == 3


def test_a_run_goes_on_in_the_middle_of_an_epoch_and_ranks_share_it(tree):
    seed_everything(3, verbose=False)
    whole = list(module(tree).train_dataloader())
    resumed = module(tree, num_workers=2).train_dataloader()
    resumed.load_state_dict({**module(tree).train_dataloader().state_dict(), "batches": 1})
    (rest,) = list(resumed)
    assert rest["files"] == whole[1]["files"]
    for one, other in zip(rest["targets"], whole[1]["targets"], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("boxes", "masks", "labels"))
    seen = []
    for rank in range(2):
        data = module(tree, batch_size=1)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, num_devices=1)
        seen += [batch["files"][0] for batch in data.train_dataloader()]
    assert len(seen) == len(set(seen)) == 4


def test_prediction_keeps_a_place_for_a_damaged_file(tree):
    folder = tree / "val2017"
    (folder / f"{102:012d}.jpg").write_bytes(b"\xff\xd8\xff")
    (batch,) = module(tree, predict_path=str(folder), val_batch_size=4, short_side=96).predict_dataloader()
    assert [image.shape[-2:] for image in batch["images"]] == [(96, 128), (40, 40), (96, 128), (96, 128)]
    assert [hasattr(name, "error") for name in batch["files"]] == [False, True, False, False]
    assert batch["targets"][0]["orig_size"].tolist() == [48, 64]


# -- masks of objects ------------------------------------------------------------------------------------------------


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.01, 0.3, 0.99, 1.0):
        for _ in range(8):
            height, width = rng.integers(1, 70, 2).tolist()
            mask = (rng.random((height, width)) < density).astype(np.uint8)
            encoded = coco.encode(np.asfortranarray(mask))
            text = encoded["counts"].decode()
            assert decoded_runs(text) == run_lengths(mask)
            for counts in (text, run_lengths(mask)):
                decoded = decode_segmentation({"size": [height, width], "counts": counts}, height, width)
                assert np.array_equal(decoded, mask) and decoded.dtype == np.uint8


@pytest.mark.parametrize(
    "counts", ["zzzzz", "", "P" * 50, "P", "\x00", "é" * 9, [3, 4], [-3, 15], [9e9], [True], 7, None]
)
def test_damaged_run_lengths_are_refused(counts):
    with pytest.raises(ValueError, match=r"its (compressed )?(run lengths|mask)"):
        decode_segmentation({"size": [3, 4], "counts": counts}, 3, 4)


# -- bad files -------------------------------------------------------------------------------------------------------

TRAIN = "annotations/instances_train2017.json"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image_id": 77}, "annotation 1 is of image 77, which is not among its images"),
        (
            {"category_id": 77},
            "annotation 1 has the category 77, which is not among the categories; correct it",
        ),
        (
            {"bbox": [1, 2, 3]},
            r"box \[1, 2, 3\] has no four numbers; correct it, or leave the image .*1\.jpg'",
        ),
        ({"bbox": None}, "the box None has no four numbers"),
    ],
)
def test_wrong_annotations_are_one_line(changes, says, tree):
    change(tree / TRAIN, **changes)
    with pytest.raises(ValueError, match=says) as raised:
        module(tree).setup("fit")
    assert "\n" not in str(raised.value) and "instances_train2017.json" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is no COCO file: expected lists of images, annotations and categories"),
        ('{"images": [{}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "'id' is missing"),
        ('{"images": [], "annotations": [], "categories": []}', "has no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 7, "name": "x"}]}', "has other categories"),
        (
            '{"images": [{"id": 1, "file_name": "../x.jpg", "height": 4, "width": 4}], "annotations": [], '
            '"categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "block"}]}',
            r"a path below the folder",
        ),
    ],
)
def test_a_wrong_file_is_one_line(content, says, tree):
    (tree / TRAIN).write_text(content)
    with pytest.raises(ValueError, match=says) as raised:
        module(tree).setup("fit")
    assert "\n" not in str(raised.value) and "instances_train2017.json" in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"segmentation": None}, r"the annotation 1 of .*000001\.jpg': it has neither .*set data\.masks=false"),
        ({"segmentation": [[1, 2, 3]]}, "a polygon of it is no list of three or more points"),
        ({"segmentation": [[-9e5, 0, 9e5, 0, 9e5, 9e5]]}, "a polygon of it is too long for its image"),
        ({"segmentation": {"size": [9, 9], "counts": "a"}}, r"its mask has the size \[9, 9\], its image \[48, 64\]"),
        ({"bbox": [70, 0, 5, 5]}, r"the box \[70, 0, 5, 5\] lies outside of its image \(64 x 48\) and is left out"),
        ({"bbox": [5, 5, 0, 5]}, r"annotation 1: the box \[5, 5, 0, 5\] is empty"),
        ({"bbox": [60, 5, 9, 5]}, r"the box \[60, 5, 9, 5\] reaches beyond its image \(64 x 48\) and is cut off there"),
    ],
)
def test_bad_objects_are_named_and_can_be_left_out(changes, says, tree, tmp_path):
    change(tree / TRAIN, **changes)
    if "segmentation" in changes:
        with pytest.raises(ValueError, match=says) as raised:
            list(module(tree).train_dataloader())
        assert "\n" not in str(raised.value)
        assert len(list(module(tree, masks=False).train_dataloader())) == 2
    else:
        with pytest.warns(UserWarning, match=f"1 boxes of .*train2017.*: {says}"):
            data = module(tree, batch_size=4)
            data.setup("fit")
        record = data.dataset("train").records[0][2]
        assert [item["box"] for item in record if item["id"] == 1] == ([[60, 5, 4, 5]] if "beyond" in says else [])
        assert len(record) == (3 if "beyond" in says else 2)  # no other object is lost
    listed = tmp_path / "bad.txt"
    argv = ["check-data", "--data", "COCOInstancesDataModule", f"--data.root={tree}", "--output", str(listed)]
    assert main(argv) == 1
    (line,) = listed.read_text().splitlines()
    assert line.startswith(f"{tree}/train2017/{1:012d}.jpg\t") and re.search(says, line)
    assert len(module(tree, exclude=str(listed)).dataset("train")) == 3


@pytest.mark.filterwarnings("ignore:. boxes of")
def test_whatever_a_file_says_is_read_or_refused_in_one_line(tree):
    content = json.loads((tree / TRAIN).read_text())
    refused = 0
    for part, key in [(part, key) for part, items in content.items() for key in items[0]]:
        for value in (None, "x", -1, 10**30, float("inf"), float("nan"), {}, [], [[]], ["x"] * 4, True, "\0"):
            changed = json.loads(json.dumps(content))
            changed[part][0][key] = value
            (tree / TRAIN).write_text(json.dumps(changed))
            try:
                list(module(tree).dataset("train"))
            except (ValueError, FileNotFoundError) as error:
                assert "\n" not in str(error) and len(str(error)) < 900
                refused += 1
    assert refused > 90


def test_a_rounded_box_is_no_fault(tree, recwarn):
    change(tree / TRAIN, bbox=[-0.4, 5, 65, 5])
    data = module(tree)
    data.setup("fit")
    assert data.dataset("train").records[0][2][0]["box"] == [0, 5, 64, 5]
    assert not [warning for warning in recwarn if "boxes of" in str(warning.message)]


def test_images_that_are_missing_damaged_or_of_another_size(tree):
    image = tree / "train2017" / f"{2:012d}.jpg"
    Image.new("RGB", (9, 8)).save(image)
    with pytest.raises(ValueError, match=r"2\.jpg' has 9 x 8 pixels .* its annotations say 64 x 48"):
        list(module(tree).train_dataloader())
    with pytest.warns(UserWarning, match="left out: "):
        assert len(next(iter(module(tree, skip_corrupt=True, batch_size=4).train_dataloader()))["files"]) == 3
    image.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"cannot decode the image .*2\.jpg'"):
        list(module(tree).train_dataloader())
    image.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 4 images of .* are missing, such as .*2\.jpg'"):
        module(tree).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"no annotations .*instances_gone\.json"):
        module(tree, train_split="gone").setup("fit")


# -- other sources ---------------------------------------------------------------------------------------------------


def yolo_tree(root: Path, line: str = "1 0.25 0.5 0.5 0.5") -> Path:
    for split in ("train", "val"):
        for number in range(3):
            (root / "images" / split).mkdir(parents=True, exist_ok=True)
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 20)).save(root / "images" / split / f"{number}.jpg")
        (root / "labels" / split / "0.txt").write_text(f"{line}\n0 0.5 0.5 1 1\n")
        (root / "labels" / split / "1.txt").touch()
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}\n")
    return root


def test_yolo(tmp_path):
    data = module(yolo_tree(tmp_path), YOLODataModule, val_batch_size=3)
    assert (data.class_names, data.num_classes, data.category_ids) == (["cat", "dog"], 2, [0, 1])
    (batch,) = data.val_dataloader()
    first, *others = batch["targets"]
    assert first["boxes"].tolist() == [[0, 5, 20, 15], [0, 0, 40, 20]] and first["labels"].tolist() == [2, 1]
    assert first["area"].tolist() == [200, 800] and "masks" not in first
    assert [len(target["boxes"]) for target in others] == [0, 0]
    assert next(iter(data.train_dataloader()))["images"]


def test_yolo_outlines(tmp_path):
    root = yolo_tree(tmp_path, "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75")
    for split in ("train", "val"):
        text = root / "labels" / split / "0.txt"
        text.write_text(text.read_text().splitlines()[0])
    target = module(root, YOLODataModule, masks=True).dataset("val")[0][1]
    assert target["boxes"].tolist() == [[10, 5, 30, 15]]
    assert target["masks"].sum() == 200 and target["masks"][0, 5:15, 10:30].all()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("5 0.5 0.5 1 1", r"line 1 of .*0\.txt' has the class 5: there are 2, from 0 on"),
        ("1 0.5 0.5 1", r"line 1 of .*0\.txt' has 4 numbers: expected CLASS X Y WIDTH HEIGHT"),
        ("dog 0.5 0.5 1 1", r"line 1 of .*0\.txt' is 'dog 0\.5 0\.5 1 1': expected numbers"),
    ],
)
def test_wrong_lines_of_yolo(line, says, tmp_path):
    root = yolo_tree(tmp_path / "yolo", line)
    with (root / "labels/train/1.txt").open("w") as text:
        text.write("7\n")
    with pytest.raises(ValueError, match=rf"{says}.*and 1 more labels"):
        module(root, YOLODataModule).setup("fit")
    listed = tmp_path / "bad.txt"
    assert main(["check-data", "--data", "YOLODataModule", "--data.root", str(root), "--output", str(listed)]) == 1
    assert [Path(line.split("\t")[0]).name for line in listed.read_text().splitlines()] == ["0.jpg", "1.jpg", "0.jpg"]
    module(root, YOLODataModule, exclude=str(listed), batch_size=1).setup("fit")


def test_boxes_outside_and_strange_files_of_yolo(tmp_path):
    with pytest.warns(UserWarning, match=r"2 boxes of|1 boxes of .*line 1 of .*0\.txt'"):
        module(yolo_tree(tmp_path, "1 1.5 0.5 0.2 0.2"), YOLODataModule).setup("fit")
    (tmp_path / "labels/train/9.txt").touch()
    with pytest.raises(ValueError, match=r"1 texts in .* have no image, such as .*9\.txt'"):
        module(tmp_path, YOLODataModule).setup("fit")
    for names in ("name: 1", "names: [[a]]", "names: " + "[" * 100_000, "names: !!python/name:os.system"):
        (tmp_path / "data.yaml").write_text(names)
        with pytest.raises(ValueError, match=r"data\.yaml' has no names of classes"):
            _ = module(tmp_path, YOLODataModule).num_classes


def test_scenes_have_exact_boxes(tmp_path):
    data = module(tmp_path / "s", DenseScenesInstancesDataModule, train_images=3, val_images=3, size=48, img_size=48)
    data.prepare_data()
    assert (data.num_classes, data.class_names) == (3, ["circle", "square", "triangle"])
    for image, target, _ in (data.dataset("val")[index] for index in range(3)):
        assert 2 <= len(target["boxes"]) <= 4 and image.shape == (3, 48, 48)
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    before = (tmp_path / "s/annotations/instances_val.json").read_bytes()
    again = module(tmp_path / "t", DenseScenesInstancesDataModule, train_images=3, val_images=3, size=48, img_size=48)
    again.prepare_data()
    assert (tmp_path / "t/annotations/instances_val.json").read_bytes() == before


@pytest.mark.skipif(not PENNFUDAN.is_dir(), reason="Penn-Fudan is not here")
def test_pennfudan():
    data = module(PENNFUDAN, img_size=128, val_batch_size=8)
    data.setup("fit")
    assert (data.class_names, data.category_ids) == (["person"], [1])
    assert [len(data.dataset(name)) for name in ("train", "val")] == [128, 42]
    targets = [target for batch in data.val_dataloader() for target in batch["targets"]]
    assert sum(len(target["boxes"]) for target in targets) == 111
    content = json.loads((PENNFUDAN / "annotations/instances_val2017.json").read_text())
    areas = {item["id"]: item for item in content["annotations"]}
    assert sum(float(target["masks"].sum()) for target in targets) == sum(
        float(coco.area(item["segmentation"])) for item in areas.values()
    )
