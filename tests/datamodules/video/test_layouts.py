"""Kinetics and Something-Something in every layout, with tiny files; check-data; a run over bad files."""

import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from video_files import write

from datamodules import KineticsDataModule, MotionDataModule, SSv2DataModule
from datamodules.demos.motion import CLASSES, render_motion
from datamodules.video.dataset import BadVideoReport
from lookupvit.cli.main import main

STEMS = {"abc_def-1 x": (0, 10), "zz9": (65, 75)}
SMALL = {"num_frames": 4, "frame_stride": 1, "img_size": 16, "batch_size": 2, "num_workers": 0}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(tmp_path_factory.mktemp("clip") / "a.mp4", frames=8).read_bytes()


def put(clip: bytes, *files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(clip)


def kinetics(root: Path, **options) -> KineticsDataModule:
    return KineticsDataModule(str(root), **{**SMALL, **options})


def test_kinetics_csv_with_quoted_labels_and_six_digit_times(clip: bytes, tmp_path: Path) -> None:
    put(clip, tmp_path / "train" / "b_000065_000075.mp4", tmp_path / "train" / "a_000000_000010.mp4")
    put(clip, tmp_path / "val" / "c_000001_000011.mp4")
    head = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "train.csv").write_text(
        head + '"petting animal (not cat)",b,65,75,train\nabseiling,a,0,10,train\nabseiling,gone,0,10,train\n'
    )
    (tmp_path / "val.csv").write_text(head + '"petting_animal_(not_cat)",c,1,11,val\n')
    data = kinetics(tmp_path, max_bad_share=0.5)
    assert data.classes == ["abseiling", "petting animal (not cat)"]
    train, val = data.list_split("train"), data.list_split("val")
    assert [Path(path).stem for path in train.paths] == ["b_000065_000075", "a_000000_000010"]
    assert (train.targets, val.targets) == ([1, 0], [1])
    assert [Path(path).name for path in train.missing] == ["gone_000000_000010.mp4"]


def test_kinetics_folders_and_lists_have_one_class_order(clip: bytes, tmp_path: Path) -> None:
    for split in ("train", "val"):
        put(
            clip,
            tmp_path / "tree" / split / "riding_a_bike" / "1.mp4",
            tmp_path / "tree" / split / "abseiling" / "2.mp4",
        )
    tree = kinetics(tmp_path / "tree")
    put(clip, tmp_path / "list" / "x" / "1.mp4", tmp_path / "list" / "x" / "2.mp4")
    (tmp_path / "list" / "train.txt").write_text("x/1.mp4 riding_a_bike\nx/2.mp4 abseiling\n")
    (tmp_path / "list" / "val.txt").write_text("x/2.mp4 abseiling\n")
    named = kinetics(tmp_path / "list")
    assert tree.classes == named.classes == ["abseiling", "riding a bike"]
    assert named.list_split("train").targets == [1, 0]
    (tmp_path / "list" / "train.txt").write_text("x/1.mp4 1\nx/2.mp4 0\n")
    (tmp_path / "list" / "val.txt").write_text("x/2.mp4 0\n")
    assert kinetics(tmp_path / "list").list_split("train").targets == [1, 0]
    with pytest.raises(FileNotFoundError, match="no Kinetics in"):
        _ = kinetics(tmp_path).layout


@pytest.mark.parametrize("prefix", ["something-something-v2-", ""])
def test_ssv2_names_templates_and_unlabelled_tests(prefix: str, clip: bytes, tmp_path: Path) -> None:
    put(clip, *(tmp_path / "20bn-something-something-v2" / f"{number}.webm" for number in (1, 2, 3, 4)))
    labels = {"Pushing something from left to right": "1", "Holding something": "0"}
    for name, content in (
        ("labels", labels),
        (
            "train",
            [
                {"id": "1", "template": "Pushing [something] from left to right"},
                {"id": "2", "template": "Holding [something]"},
            ],
        ),
        ("validation", [{"id": "3", "template": "Holding [something]"}]),
        ("test", [{"id": "4"}]),
    ):
        (tmp_path / f"{prefix}{name}.json").write_text(json.dumps(content))
    data = SSv2DataModule(str(tmp_path), **SMALL)
    assert data.classes == ["Holding something", "Pushing something from left to right"]
    assert data.list_split("train").targets == [1, 0]
    assert data.list_split("test").targets == [None]
    ((views, files),) = list(_predict(SSv2DataModule(str(tmp_path), predict_split="test", **SMALL)))
    assert views.shape[2:] == (3, 4, 16, 16) and Path(files[0]).name == "4.webm"
    with pytest.raises(ValueError, match="have no labels: predict on them"):
        SSv2DataModule(str(tmp_path), test_split="test", **SMALL).setup("test")


def _predict(data: SSv2DataModule):
    data.setup("predict")
    return data.predict_dataloader()


def test_ssv2_flips_nothing_unless_it_is_told_to_and_warns_then(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not SSv2DataModule(str(tmp_path), **SMALL).options["hflip"]
    with pytest.warns(UserWarning, match="left and right are labels"):
        SSv2DataModule(str(tmp_path), hflip=0.5, **SMALL)


@pytest.mark.parametrize("layout", ["csv", "folders", "list", "ssv2"])
def test_the_motion_demo_in_every_layout(layout: str, tmp_path: Path) -> None:
    data = MotionDataModule(
        str(tmp_path / "motion"), layout=layout, train_per_class=1, val_per_class=1, **{**SMALL, "img_size": 32}
    )
    data.prepare_data()
    assert len(data.classes) == len(CLASSES) == 10
    data.setup("validate")
    clips, targets = next(iter(data.val_dataloader()))
    assert clips.shape == (2, 3, 4, 32, 32) and targets.shape == (2,)
    assert sorted(t for _, batch in data.val_dataloader() for t in batch.tolist()) == list(range(10))


def test_check_data_lists_bad_videos_and_images(clip: bytes, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    put(clip, tmp_path / "good.mp4")
    put(clip[: len(clip) // 2], tmp_path / "cut.mp4")
    put(b"", tmp_path / "empty.mp4")
    put(b"no image", tmp_path / "text.jpg")
    output = tmp_path / "bad.txt"
    assert main(["check-data", str(tmp_path), "--output", str(output)]) == 1
    assert "4 files, 3 bad (75.00%)" in capsys.readouterr().out
    assert [Path(line.split("\t")[0]).name for line in output.read_text().splitlines()] == [
        "cut.mp4",
        "empty.mp4",
        "text.jpg",
    ]
    assert main(["check-data", str(tmp_path / "nothing")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_an_epoch_over_bad_files_ends_and_names_each_once(
    tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "motion"
    render_motion(root, layout="folders", train_per_class=6, val_per_class=1, size=32, frames=8)
    files = sorted((root / "train").rglob("*.mp4"))  # 60: 5 % are 3
    files[0].write_bytes(b"")
    files[20].write_bytes(files[20].read_bytes()[:200])
    files[40].write_bytes(torch.randint(0, 255, (500,), dtype=torch.uint8).numpy().tobytes())
    (root / "motion.json").unlink()
    argv = ["fit", "--model", "VideoTask", "--data", "KineticsDataModule", "--data.root", str(root)]
    argv += ["--model.name", "lookupvivit_tiny_joint_patch8x2_32", "--model.compressed_size", "[2,2,2]"]
    argv += ["--model.args", "{embed_dim: 32, depth: 1, num_heads: 2}", "--trainer.accelerator", "cpu"]
    argv += ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--name", "bad"]
    argv += ["--output_dir", str(tmp_path / "out"), "--data.num_workers", "0"]
    argv += ["--data.num_frames", "4", "--data.frame_stride", "1", "--data.img_size", "32", "--data.batch_size", "4"]
    with caplog.at_level(logging.WARNING, logger="datamodules"):
        assert main(argv) == 0
    named = [record.getMessage() for record in caplog.records if "another video takes its place" in record.getMessage()]
    for file in (files[0], files[20], files[40]):
        assert sum(str(file) in text for text in named) == 1, file
    assert len(named) == 3  # and no good one
    last = next((tmp_path / "out" / "bad").rglob("last.ckpt"))
    assert torch.load(last, weights_only=True)["global_step"] == 15
    # the checkpoint scores by video without a configuration: four views each
    argv = ["test", "--ckpt_path", str(last), "--trainer.accelerator", "cpu", "--output_dir", str(tmp_path / "out")]
    assert main([*argv, "--data.test_clips", "2", "--data.test_crops", "1", "--data.num_workers", "0"]) == 0
    assert "test/top1" in capsys.readouterr().out


def test_validation_is_in_order_and_whole_and_bad_videos_are_watched(tmp_path: Path) -> None:
    render_motion(tmp_path / "clips", layout="csv", train_per_class=1, val_per_class=1, size=16, frames=4)
    options = {"num_frames": 4, "frame_stride": 1, "img_size": 16, "short_side": (16, 18), "num_workers": 0}
    data = KineticsDataModule(str(tmp_path / "clips"), **options, batch_size=3)
    data.trainer = SimpleNamespace(callbacks=[], world_size=1, global_rank=0, num_devices=1)
    for _ in range(2):
        data.setup("validate")
    assert [type(one) for one in data.trainer.callbacks] == [BadVideoReport]
    targets = [torch.cat([batch[1] for batch in data.val_dataloader()]).tolist() for _ in range(2)]
    assert targets[0] == targets[1] and sorted(targets[0]) == list(range(10))  # 10 is no multiple of 3
