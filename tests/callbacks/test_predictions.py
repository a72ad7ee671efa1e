"""What `predict` writes: one entry for each input, in order, whatever is wrong with the file; whole files or none."""

import csv
import errno
import json
from pathlib import Path

import pytest
import video_files
from conftest import write_image
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything

from datamodules import ImageFolderDataModule, KineticsDataModule, SSv2DataModule
from datamodules.captions.coco import COCOCaptionsDataModule
from datamodules.captions.tokenizer import train_tokenizer
from lookupvit.callbacks.answers.captions import CaptionWriter
from lookupvit.callbacks.answers.predictions import PredictionWriter
from lookupvit.tasks import CaptioningTask, ClassificationTask, VideoTask

SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2}
BROKEN = {1: b"", 3: None, 4: b"no picture at all"}  # places in a sorted folder of 6; None: the second half is missing


def predict(task: LightningModule, data: LightningDataModule, writer: PredictionWriter | CaptionWriter) -> None:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    Trainer(accelerator="cpu", callbacks=[writer], **quiet).predict(task, data, return_predictions=False)


def damage(paths: list[Path]) -> list[str]:
    """The names of a folder's files, some of them broken."""
    for place, content in BROKEN.items():
        paths[place].write_bytes(
            paths[place].read_bytes()[: paths[place].stat().st_size // 2] if content is None else content
        )
    return [str(path) for path in paths]


def rows_of(folder: Path) -> tuple[list[dict], list[dict]]:
    with (folder / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()], table


def check_rows(folder: Path, files: list[str]) -> None:
    lines, table = rows_of(folder)
    assert [line["file"] for line in lines] == files == [row["file"] for row in table]
    for place, (line, row) in enumerate(zip(lines, table, strict=True)):
        if place in BROKEN:
            assert line["predictions"] == [] and files[place] in line["error"] and row["error"] == line["error"]
            assert not row["class_1"] and not row["probability_1"]
        else:
            assert line["predictions"] and "error" not in line and not row["error"]
            assert float(row["probability_1"]) == line["predictions"][0]["probability"]


def classifier() -> ClassificationTask:
    seed_everything(0, verbose=False)
    args = {**SMALL, "patch_size": 8}
    task = ClassificationTask(
        "lookupvit_tiny_patch16_224", num_classes=3, img_size=16, compressed_size=(1, 1), args=args
    )
    task.class_names = ["a", "b", "c"]
    return task


def images(folder: Path, path: Path, **options) -> ImageFolderDataModule:
    own = {"img_size": 16, "batch_size": 2, "num_workers": 0, "num_classes": 3, **options}
    return ImageFolderDataModule(str(folder / "none"), predict_path=str(path), **own)


@pytest.mark.parametrize("options", [{"num_workers": 0}, {"num_workers": 2}, {"skip_corrupt": True}])
def test_each_image_has_its_row(options: dict, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = damage([write_image(tmp_path / "in" / f"{at}.jpg", 40, 50, at) for at in range(6)])
    predict(classifier(), images(tmp_path, tmp_path / "in", **options), PredictionWriter(str(tmp_path / "out")))
    check_rows(tmp_path / "out", files)
    printed = capsys.readouterr()
    assert "6 predictions: " in printed.out
    assert "3 of 6 files could not be read" in printed.err and files[1] in printed.err
    # the good ones are what they are without the bad ones beside them
    lines, _ = rows_of(tmp_path / "out")
    predict(classifier(), images(tmp_path, files[2]), PredictionWriter(str(tmp_path / "alone")))
    alone = rows_of(tmp_path / "alone")[0][0]["predictions"]
    assert [row["index"] for row in alone] == [row["index"] for row in lines[2]["predictions"]]
    for one, other in zip(alone, lines[2]["predictions"], strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_nothing_but_unreadable_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the 1 files could be read \(.*a\.jpg"):
        predict(classifier(), images(tmp_path, tmp_path / "a.jpg"), PredictionWriter(str(tmp_path)))
    lines, _ = rows_of(tmp_path)
    assert len(lines) == 1 and "a.jpg" in lines[0]["error"]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_video_has_its_row(workers: int, tmp_path: Path) -> None:
    files = damage([video_files.write(tmp_path / "in" / f"{at}.mp4", frames=6, seed=at) for at in range(6)])
    options = {"num_frames": 4, "frame_stride": 1, "img_size": 16, "test_clips": 2, "num_classes": 3}
    options |= {"num_workers": workers, "test_batch_size": 2, "decoder": "pyav"}
    task = VideoTask("lookupvivit_tiny_joint_patch8x2_32", num_classes=3, img_size=16, num_frames=4, args=SMALL)
    task.class_names = ["a", "b", "c"]
    data = KineticsDataModule(str(tmp_path / "none"), predict_path=str(tmp_path / "in"), **options)
    predict(task, data, PredictionWriter(str(tmp_path / "out")))
    check_rows(tmp_path / "out", files)


def test_a_video_that_a_split_names_and_that_is_missing_has_its_row(tmp_path: Path) -> None:
    root = tmp_path / "ssv2"
    video_files.write(root / "1.webm", frames=6, codec="libvpx-vp9")
    for name, content in (
        ("something-something-v2-labels.json", {"Holding something": "0"}),
        ("something-something-v2-test.json", [{"id": "1"}, {"id": "2"}]),
    ):
        (root / name).write_text(json.dumps(content))
    data = SSv2DataModule(str(root), predict_split="test", num_frames=4, img_size=16, num_workers=0, test_clips=1)
    data.setup("predict")
    names = [name for _, files in data.predict_dataloader() for name in files]
    assert [Path(name).name for name in names] == ["1.webm", "2.webm"]
    assert [hasattr(name, "error") for name in names] == [False, True]


def test_each_image_to_caption_has_its_entry(tmp_path: Path) -> None:
    files = damage([write_image(tmp_path / "in" / f"{at}.jpg", 40, 50, at) for at in range(20, 26)])
    data = COCOCaptionsDataModule(
        str(tmp_path / "none"),
        predict_path=str(tmp_path / "in"),
        img_size=16,
        batch_size=2,
        num_workers=0,
        context_length=8,
    )
    tokenizer = train_tokenizer(["a red square left of a circle", "two blue squares"] * 3, 40)
    data.tokenizer = tokenizer
    task = CaptioningTask(
        "lookupvit_tiny_patch4_32",
        img_size=16,
        compressed_size=(2, 2),
        args={**SMALL, "patch_size": 8},
        decoder={"depth": 1, "num_heads": 2, "context_length": 8},
        generation={"method": "greedy", "max_length": 4},
        freeze_encoder=False,
        vocab_size=tokenizer.vocab_size,
    )
    task.tokenizer = tokenizer
    predict(task, data, CaptionWriter(str(tmp_path / "out")))
    entries = json.loads((tmp_path / "out" / "captions.json").read_text())
    assert [entry["image_id"] for entry in entries] == list(range(20, 26))
    assert [place for place, entry in enumerate(entries) if "error" in entry] == list(BROKEN)
    assert all(entry["caption"] == "" for entry in entries if "error" in entry)
    text = (tmp_path / "out" / "captions.txt").read_text().splitlines()
    assert [line for line in text if not line.startswith(" ")] == files
    assert sum(line.startswith("    error: cannot decode the image") for line in text) == len(BROKEN)


def test_a_full_disk_leaves_no_half_written_file_under_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(6):
        write_image(tmp_path / "in" / f"{at}.jpg", 40, 50, at)
    (tmp_path / "predictions.jsonl").write_text("of an earlier run\n")
    writer = PredictionWriter(str(tmp_path))
    real, calls = PredictionWriter.write_on_batch_end, []

    def full(self: PredictionWriter, *args, **kwargs) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, *args, **kwargs)

    monkeypatch.setattr(PredictionWriter, "write_on_batch_end", full)
    with pytest.raises(OSError, match=r"cannot write .*predictions\.jsonl: No space left on device") as error:
        predict(classifier(), images(tmp_path, tmp_path / "in"), writer)
    assert "\n" not in str(error.value)
    assert (tmp_path / "predictions.jsonl").read_text() == "of an earlier run\n"
    assert not (tmp_path / "predictions.csv").exists()
    assert len((tmp_path / "predictions.jsonl.partial").read_text().splitlines()) == 2  # what came before
