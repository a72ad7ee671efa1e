"""`lookupvit compare` on segmenters and detectors: one table, several at once, and pictures of what they find."""

import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from datamodules import DenseScenesDataModule, DenseScenesInstancesDataModule
from datamodules.demos.dense_scenes import render_dense_scenes
from lookupvit.cli.compare_pictures import Seen, draw_side_by_side, look
from lookupvit.cli.main import main
from lookupvit.model.dense.segmenter import Segmenter

CONFIG = """
name: {name}
trainer: {{accelerator: cpu, max_epochs: 1, enable_progress_bar: false}}
model:
  class_path: {task}
  init_args: {{name: {model}, args: {{embed_dim: 32, depth: 1, num_heads: 2, patch_size: 8}}, pictures: 0{more}}}
data:
  class_path: {data}
  init_args: {{root: {root}, train_images: 4, val_images: 3, size: 32, img_size: 32, batch_size: 4, num_workers: 0}}
"""
HEADS = ", strides: [4, 8], out_channels: 8, box_convs: 0, box_dim: 8, mask_convs: 1"
SIZES = {"train_images": 4, "val_images": 3, "size": 32}


def write(folder, name, task, model, data, more=""):
    file = folder / f"{name}.yaml"
    root = folder / "scenes"
    file.write_text(CONFIG.format(name=name, task=task, model=model, data=data, root=root, more=more))
    return str(file)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_masks_and_boxes_in_one_table(tmp_path, capsys, jobs):
    masks = ("SegmentationTask", "lookupvit_tiny_patch4_32", "DenseScenesDataModule", ", compressed_size: [2, 2]")
    boxes = ("DetectionTask", "vit_tiny_patch4_32", "DenseScenesInstancesDataModule", HEADS)
    files = [write(tmp_path, name, *what) for name, what in (("masks", masks), ("boxes", boxes))]
    argv = ["compare", *files, "--output", str(tmp_path / "out"), "--title", "both", "--jobs", str(jobs)]
    assert main(argv) == 0
    first, second = json.loads((tmp_path / "out" / "both.json").read_text())
    assert first["run"] == "masks" and 0 <= first["miou"] <= 100 and "ap" not in first
    assert second["run"] == "boxes" and {"ap", "ap50", "mask_ap", "mask_ap50"} <= second.keys() and "miou" not in second
    for name in ("both_miou", "both_ap", "both_found_miou", "both_found_ap"):
        with Image.open(tmp_path / "out" / f"{name}.png") as picture:
            assert picture.width >= 400
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("mIoU", "AP50", "mask AP", "within a task"))
    if jobs > 1:  # what is finished is not trained again
        assert main(argv) == 0
        assert not (tmp_path / "out" / "masks" / "version_1").exists()
        assert "2 of 2 runs are finished" in capsys.readouterr().out


class Knowing:
    """A task that answers with the truth, or with nothing."""

    def __init__(self, model, answer):
        self.model, self.predict_step = model, lambda batch, place: answer(batch)

    def eval(self):
        return self


def test_who_knows_the_truth_draws_the_truth(tmp_path):
    """In both tasks the picture of a perfect answer equals that of the truth, and an empty one the image alone."""
    options = {"root": str(tmp_path / "scenes"), "img_size": 32, "val_batch_size": 3, "num_workers": 0, **SIZES}
    data = DenseScenesDataModule(**options)
    data.prepare_data()
    data.setup("test")
    seen = look(Knowing(Segmenter.__new__(Segmenter), lambda batch: {"masks": batch["masks"]}), data, count=2)
    assert len(seen.files) == len(seen.truth) == 2
    assert all(torch.equal(*pair) for pair in zip(seen.truth, seen.found, strict=True))
    empty = look(Knowing(Segmenter.__new__(Segmenter), lambda batch: {"masks": 0 * batch["masks"]}), data, count=2)
    assert not torch.equal(empty.found[0], seen.truth[0])

    def all_of_it(batch):
        found = [
            {**{key: target[key] for key in ("boxes", "labels", "masks")}, "scores": torch.ones(len(target["labels"]))}
            for target in batch["targets"]
        ]
        return {"detections": found, "sizes": [(32, 32)] * len(found)}

    data = DenseScenesInstancesDataModule(**options)
    data.setup("test")
    seen = look(Knowing(SimpleNamespace(), all_of_it), data)
    assert len(seen.files) == 3  # as many as there are
    # the scores are written beside the classes; away from the words the pictures are equal
    differ = [(one != other).any(dim=0).float().mean() for one, other in zip(seen.truth, seen.found, strict=True)]
    assert max(differ) < 0.1


def test_runs_that_saw_different_images_are_not_drawn(tmp_path):
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    one, other = (Seen([name], [picture], [picture]) for name in ("a.jpg", "b.jpg"))
    assert draw_side_by_side({"one": one, "other": other}, tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()
    assert draw_side_by_side({"one": one, "same": one}, tmp_path / "x.png") == tmp_path / "x.png"


def test_of_two_that_render_at_once_one_waits(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: render_dense_scenes(tmp_path / "scenes", 0, 6, 2, 32), range(2)))
    assert sorted(done) == [False, True]
    assert len(list((tmp_path / "scenes" / "images" / "train").iterdir())) == 6
