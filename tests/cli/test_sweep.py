"""`lookupvit sweep` in process: checkpoints in, figures out; trainings that resume; one line for each mistake."""

import csv
import json
from pathlib import Path

import pytest
import torch
from conftest import TREE_CLASSES, write_tree
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules import ImageFolderDataModule
from datamodules.images import folder as image_folder
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.analysis.cost import count_macs
from lookupvit.analysis.plots import read_scalars
from lookupvit.cli.common.loaded import labels_of, load, loader_of
from lookupvit.cli.main import main
from lookupvit.cli.runs import _is_done
from lookupvit.cli.sweep.output import contrasts_of, series_of
from lookupvit.cli.sweep.score import Found
from lookupvit.cli.sweep.train import Run
from lookupvit.tasks import ClassificationTask

CONFIG = """
trainer: {{accelerator: cpu, max_epochs: 2, log_every_n_steps: 1, enable_progress_bar: false}}
model:
  class_path: ClassificationTask
  init_args: {{name: {model}, lr: 0.01, args: {{embed_dim: 12, depth: 1, num_heads: 2, patch_size: 8}}}}
data:
  class_path: ImageFolderDataModule
  init_args: {{root: {root}, img_size: 32, batch_size: 6, num_workers: 0}}
"""
QUICK = ["--batch", "2", "--rounds", "1"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, of each 2 training, 4 validation and 3 test images."""
    return write_tree(tmp_path_factory.mktemp("sweep"), TREE_CLASSES, {"train": 2, "val": 4, "test": 3}, size=32)


@pytest.fixture(scope="module")
def config(tree: Path) -> Path:
    for name, model in (("mine", "lookupvit_tiny_patch4_32"), ("plain", "vit_tiny_patch4_32")):
        (tree / f"{name}.yaml").write_text(CONFIG.format(model=model, root=tree))
    return tree / "mine.yaml"


@pytest.fixture(scope="module")
def checkpoints(config: Path) -> list[str]:
    """Last checkpoints of a LookupViT and a ViT."""
    for name in ("mine", "plain"):
        argv = ["fit", "--config", str(config.with_name(f"{name}.yaml")), "--name", name]
        assert main([*argv, "--output_dir", str(config.parent / "out"), "--trainer.max_epochs", "1"]) == 0
    return [str(config.parent / "out" / name / "version_0/checkpoints/last.ckpt") for name in ("mine", "plain")]


def error_of(capsys: pytest.CaptureFixture, argv: list[str]) -> str:
    """Runs a sweep that must fail: exit code 2, one line on stderr."""
    capsys.readouterr()
    assert main(["sweep", *argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lookupvit")]
    assert len(lines) == 1, lines
    return lines[0].partition("error: ")[2]


def test_checkpoints_to_figures(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = image_folder.decode_rgb
    monkeypatch.setattr(image_folder, "decode_rgb", lambda path: (opened.append(path), real(path))[1])
    argv = ["sweep", *checkpoints, "--sizes", "1x2", "3x3", "--output", str(tmp_path), "--title", "both", *QUICK]
    assert main(argv) == 0
    # Every test image is decoded once for 2 models and 3 cases, every validation image once for the cascade.
    assert len(opened) == len(set(opened)) == 9 + 12
    monkeypatch.undo()

    document = json.loads((tmp_path / "both.json").read_text())
    rows = document["rows"]
    assert [(row["model"], row["compressed_size"]) for row in rows] == [
        ("mine", [1, 2]),
        ("mine", [3, 3]),
        ("plain", None),
    ]
    assert document["command"].startswith("lookupvit sweep ") and "--title both" in document["command"]
    assert document["settings"] == {"split": "test", "limit": None, "images": 9, "timed_batch": 2}
    assert {"device", "threads", "torch"} <= set(document["environment"])
    for row, path in zip(rows, (checkpoints[0], *checkpoints), strict=True):
        # The figures of `test`, which decodes, embeds and counts by itself.
        size = ["--model.compressed_size", json.dumps(row["compressed_size"])] if row["compressed_size"] else []
        out = tmp_path / row["model"] / str(row["compressed_size"])
        argv = ["test", "--ckpt_path", path, *size, "--output_dir", str(out), "--trainer.accelerator", "cpu"]
        assert main([*argv, "--name", "x", "--trainer.enable_progress_bar", "false"]) == 0
        for key in ("top1", "top5"):
            assert row[key] == pytest.approx(100 * read_scalars(out / "x/version_0", f"test/{key}")[1][-1], abs=1e-4)
        model = ClassificationTask.load_from_checkpoint(path, weights_only=True).model
        assert row["macs"] == count_macs(model, compressed_size=row["compressed_size"])
        assert row["parameters"] == sum(p.numel() for p in model.parameters())
        assert min(row["images_per_second"], row["latency_ms"], row["peak_mib"]) > 0
        assert row["image_ms"] == pytest.approx(1000 / row["images_per_second"])
    best = max(row["top1"] for row in rows)
    assert rows[0]["pareto_macs"] and any(row["pareto_time"] and row["top1"] == best for row in rows)

    with (tmp_path / "both.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["compressed_size"] for row in table] == ["1x2", "3x3", ""]
    assert [float(row["top1"]) for row in table] == [row["top1"] for row in rows]
    for name in ("macs", "time", "cascade"):
        assert (tmp_path / f"both_{name}.svg").is_file()
        with Image.open(tmp_path / f"both_{name}.png") as picture:
            assert picture.width == 680
    (study,) = document["cascades"]  # a ViT has none
    assert study["thresholds_from"] == "the validation split"
    assert (study["calibration_images"], study["images"]) == (12, 9)
    for file in tmp_path.glob("both_cascades/*.json"):
        assert len(Cascade.load(file).sizes) == 2

    folder = tmp_path / "tensorboard" / "both"
    tokens, values = read_scalars(folder / "mine" / "32px", "sweep/top1")
    assert tokens == [2, 9] and values == pytest.approx([rows[0]["top1"], rows[1]["top1"]])
    events = EventAccumulator(str(folder / "mine" / "32px" / "3x3")).Reload()
    assert "_hparams_/session_start_info" in events.summary_metadata
    printed = capsys.readouterr().out
    assert "MMACs" in printed and "9 images of the test split" in printed and "both.csv" in printed


def test_image_sizes_limits_splits_and_heads(checkpoints: list[str], tmp_path: Path, tree: Path) -> None:
    argv = ["sweep", checkpoints[0], "--output", str(tmp_path), *QUICK, "--img_size", "32", "48x64", "--split", "val"]
    argv += ["--limit", "6", "--head", "compressed", "--labels", "a name", "--data.batch_size=5"]
    assert main([*argv, "--sizes", "2x2", "3x3"]) == 0
    document = json.loads((tmp_path / "sweep.json").read_text())
    rows = document["rows"]
    assert [(row["img_size"], row["compressed_size"]) for row in rows] == [
        ([32, 32], [2, 2]),
        ([32, 32], [3, 3]),
        ([48, 64], [2, 2]),
        ([48, 64], [3, 3]),
    ]
    assert {(row["model"], row["head"], row["images"]) for row in rows} == {("a name", "compressed", 6)}
    assert rows[2]["macs"] > rows[0]["macs"]
    task = ClassificationTask.load_from_checkpoint(checkpoints[0], weights_only=True)
    assert rows[0]["macs"] == count_macs(task.model, 32, (2, 2), "compressed") < count_macs(task.model, 32, (2, 2))
    assert [study["model"] for study in document["cascades"]] == ["a name, 32 px", "a name, 48x64 px"]
    # The split's own halves: there is no other validation data.
    assert {study["calibration_images"] for study in document["cascades"]} == {3}


def test_default_sizes_and_a_limit_spread_over_the_classes(checkpoints: list[str], tree: Path) -> None:
    loaded = load(Path(checkpoints[0]), "x", None, None, "cpu")
    assert loaded.subject.sizes == ((3, 3),)  # what it was trained at
    data = ImageFolderDataModule(str(tree), img_size=32, num_workers=0, batch_size=2)
    targets = torch.cat([targets for _, targets in loader_of(data, "test", 3)])
    assert targets.tolist() == [0, 1, 2]
    assert len(loader_of(data, "test", 100).dataset) == 9


def test_labels_are_as_short_as_they_can_be() -> None:
    a, b = "outputs/demo/version_0/checkpoints/last.ckpt", "outputs/demo/version_1/checkpoints/last.ckpt"
    c = "outputs/vit/version_0/checkpoints/last.ckpt"
    assert labels_of([Path(a), Path(c)]) == ["demo", "vit"]
    assert labels_of([Path(a), Path(b)]) == ["demo/version_0", "demo/version_1"]
    assert labels_of([Path(a), Path(a.replace("last", "best"))]) == ["demo/version_0/last", "demo/version_0/best"]
    assert labels_of([Path("some/where/mine.ckpt")]) == ["mine"]


def test_training_one_model_a_size_and_one_for_all(
    config: Path,
    checkpoints: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = ["--config", str(config), "--sizes", "2x2", "3x3", "--output", str(tmp_path), "--single", "--multi", *QUICK]
    argv += [
        "--model.weight_decay",
        "0.1",
        "--model.sandwich",
        "true",
    ]  # the latter is for the model of all sizes alone

    # The second training breaks off in its second epoch.
    start = ClassificationTask.on_train_start

    def breaks(task: ClassificationTask) -> None:
        start(task)
        if task.compressed_size == (3, 3) and task.compressed_sizes is None:
            task.on_train_epoch_start = lambda: 1 / (1 - task.current_epoch)

    monkeypatch.setattr(ClassificationTask, "on_train_start", breaks)
    with pytest.raises(ZeroDivisionError):
        main(["sweep", *argv])
    monkeypatch.undo()
    assert (tmp_path / "single_2x2_seed0" / "done.json").is_file()
    assert not (tmp_path / "single_3x3_seed0" / "done.json").exists()
    first = (tmp_path / "single_2x2_seed0" / "done.json").stat().st_mtime_ns

    capsys.readouterr()
    assert main(["sweep", checkpoints[1], *argv]) == 0
    printed = capsys.readouterr().out
    assert "1 of 3 runs are finished: 2 to go" in printed and "going on from" in printed
    assert (tmp_path / "single_2x2_seed0" / "done.json").stat().st_mtime_ns == first
    done = json.loads((tmp_path / "single_3x3_seed0" / "done.json").read_text())
    assert (done["steps"], done["epochs"]) == (2, 2) and done["checkpoint"].startswith("version_1")
    assert read_scalars(tmp_path / "single_3x3_seed0/version_1", "train/loss")[0] == [1]  # step 0 was in version_0
    multi = json.loads((tmp_path / "multi_seed0" / "done.json").read_text())["settings"]
    assert multi["model.compressed_sizes"] == [[2, 2], [3, 3]] and multi["model.sandwich"] is True
    assert done["settings"]["model.sandwich"] is False and done["settings"]["model.compressed_size"] == [3, 3]
    assert done["settings"]["model.weight_decay"] == multi["model.weight_decay"] == 0.1

    document = json.loads((tmp_path / "sweep.json").read_text())
    assert [(one["trained_at"], one["epochs"], one["steps"]) for one in document["trainings"]] == [
        ([2, 2], 2, 2),
        ([3, 3], 2, 2),
        (None, 2, 2),
    ]
    top1 = {
        (row["model"], tuple(row["compressed_size"]) if row["compressed_size"] else None): row["top1"]
        for row in document["rows"]
    }
    assert set(top1) == {
        *(
            (name, size)
            for name in ("single_2x2_seed0", "single_3x3_seed0", "multi_seed0")
            for size in ((2, 2), (3, 3))
        ),
        ("plain", None),
    }
    for one in document["multi_against_single"]:
        size = tuple(one["size"])
        expected = top1[("multi_seed0", size)] - top1[(f"single_{size[0]}x{size[1]}_seed0", size)]
        assert one["difference_mean"] == pytest.approx(expected) and one["difference_sd"] is None
    assert [study["model"] for study in document["cascades"]] == ["multi_seed0"]
    assert "one model for all sizes against one model per size" in printed

    # All are finished: nothing is trained again, and changed settings are told.
    message = error_of(capsys, [*argv, "--model.lr", "0.5"])
    assert message == (
        f"{tmp_path / 'single_2x2_seed0'} was run with --model.lr 0.01, now it is 0.5: "
        "give the old settings, or another --output_dir"
    )
    monkeypatch.setattr("lookupvit.cli.runs._train", None)
    assert main(["sweep", *argv, "--data.persistent_workers", "false"]) == 0  # changes no result
    (tmp_path / "multi_seed0" / done["checkpoint"].replace("version_1", "version_0")).unlink()
    assert "marked as done but" in error_of(capsys, argv)


def test_runs_of_several_seeds_are_one_series_and_one_contrast() -> None:
    targets = torch.zeros(4, dtype=torch.int64)
    right, wrong = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    runs = {run.name: run for seed in (0, 1) for run in (Run((2, 2), seed), Run((3, 3), seed), Run(None, seed))}
    found = Found(targets=dict.fromkeys(runs, targets))
    # How many of the 4 images are named rightly at 2x2 and 3x3, by run.
    counts = dict(zip(runs, ((2, 0), (0, 3), (3, 3), (2, 0), (0, 1), (1, 4)), strict=True))
    for label, by_size in counts.items():
        found.logits[label] = {}
        for size, count in zip(((2, 2), (3, 3)), by_size, strict=True):
            found.logits[label][size] = torch.stack([right] * count + [wrong] * (4 - count))
            row = {"model": label, "compressed_size": list(size), "img_size": [32, 32], "macs": 1e6 * size[0]}
            found.rows.append(row | {"top1": 25.0 * count})
    small, large = contrasts_of(found, runs)
    assert (small.size, small.multi, small.single) == ((2, 2), (75, 25), (50, 50))
    assert (large.size, large.multi, large.single) == ((3, 3), (75, 100), (75, 25))
    assert contrasts_of(found, {name: run for name, run in runs.items() if run.size}) == []

    one_a_size, for_all = series_of(found.rows, runs, "macs", 1e6)
    assert (one_a_size.label, for_all.label) == ("one model per size", "one model, all sizes")
    assert [(point.cost, point.accuracy, point.name) for point in one_a_size.points] == [(2, 50, "2x2"), (3, 50, "3x3")]
    assert [(point.accuracy, point.error) for point in for_all.points] == [
        (50, pytest.approx(50 / 2**0.5)),
        (87.5, pytest.approx(25 / 2**0.5)),
    ]


def test_an_option_that_came_since_counts_with_its_default(tmp_path: Path) -> None:
    settings = {"model.class_path": "lookupvit.tasks.ClassificationTask", "model.lr": 0.1, "model.loss": "softmax"}
    (tmp_path / "done.json").write_text(json.dumps({"settings": settings | {"model.name": "x"}}))
    now = settings | {"model.name": "x", "model.label_smoothing": 0.0, "model.betas": [0.9, 0.999]}
    assert _is_done(tmp_path, now)
    with pytest.raises(ValueError, match=r"was run with --model.label_smoothing 0.0, now it is 0.1: give the old"):
        _is_done(tmp_path, now | {"model.label_smoothing": 0.1})
    with pytest.raises(ValueError, match=r"--model.args.reuse None, now it is renormalize"):
        _is_done(tmp_path, now | {"model.args.reuse": "renormalize"})
    (tmp_path / "done.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        _is_done(tmp_path, now)


def test_names_of_runs() -> None:
    assert (Run((2, 5), 3).name, Run(None, 0).name) == ("single_2x5_seed3", "multi_seed0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "nothing to sweep: give checkpoints, or --config BASE.yaml to train first"),
        ("nowhere.ckpt", "checkpoint nowhere.ckpt does not exist"),
        ("{mine} --sizes 3x", "compressed size '3x' is not of the form 3x3"),
        ("{mine} --sizes 2x2x2", "compressed size '2x2x2' has 3 axes: images have two, such as 3x3"),
        ("{mine} --sizes 9x9", "mine at 32x32 px: compressed_size (9, 9) does not fit the lookup grid (4, 4)"),
        ("{mine} --sizes 2x2 2x2", "--sizes lists (2, 2) twice"),
        ("{mine} --img_size big", "'big' is no image size: give 224, or 224x320"),
        ("{mine} --img_size 36", "image size (36, 36) is not a multiple of the patch size (8, 8)"),
        ("{mine} --limit 0", "'0' is not a whole number of at least 1"),
        ("{mine} --labels a b", "2 --labels for 1 checkpoints: give one each"),
        ("{mine} --multi", "--multi is of training: it needs --config BASE.yaml"),
        ("{mine} --trainer.max_epochs 3", "--trainer.max_epochs is no option of sweep"),
        ("{mine} --siezs 3x3", "--siezs is no option of sweep"),
        ("{mine} --data.rot x", "--data.rot is not an option of ImageFolderDataModule: did you mean --data.root?"),
        ("{mine} --data.root /nowhere", "/nowhere"),
        ("{mine} --data.num_classes 5", "mine tells 3 classes apart and the data has 5"),
        ("{mine} --split train", "invalid choice: 'train'"),
        ("--config {config}", "--config needs --sizes, such as --sizes 3x3 5x5"),
        ("--config {config} --sizes 2x2 9x9", "compressed_size (9, 9) does not fit the lookup grid (4, 4)"),
        ("--config {config} --sizes 2x2 --img_size 32", "--img_size goes with checkpoints alone"),
        ("--config {config} --sizes 2x2 --trainer.devices 2", "--trainer.devices 2: these runs train on one device"),
        ("--config {config} --sizes 2x2 --model.lrr 2", "--model.lrr is not an option of ClassificationTask"),
        ("--config nowhere.yaml --sizes 2x2", "config nowhere.yaml does not exist"),
        ("--config {plain} --sizes 2x2", "vit_tiny_patch4_32 has no compressed tokens"),
    ],
)
def test_a_mistake_is_one_line(
    options: str, message: str, config: Path, checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    text = options.format(mine=checkpoints[0], config=config, plain=config.with_name("plain.yaml"))
    assert message in error_of(capsys, [*text.split(), "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_checkpoints_that_do_not_fit_are_one_line(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    checkpoint = torch.load(checkpoints[0], weights_only=True)
    torch.save({**checkpoint, "state_dict": {}}, tmp_path / "empty.ckpt")
    torch.save({key: value for key, value in checkpoint.items() if key != "data_config"}, tmp_path / "homeless.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "bare.ckpt")
    for name, message in (
        ("text", "cannot be read"),
        ("empty", "is missing in it"),
        ("homeless", "does not say which data it was trained on: add --data CLASS"),
        ("bare", "holds no whole model"),
    ):
        assert message in error_of(capsys, [str(tmp_path / f"{name}.ckpt")])
    assert "--head lookup" not in error_of(capsys, [checkpoints[0], "--head", "none"])
