"""Options that a parser lets through: refused in one line, before they end in a traceback or do what nobody meant."""

import json
import shutil
from pathlib import Path

import pytest
import test_answers
from test_answers import picture, run

from lookupvit import create_model

last = test_answers.last  # a fixture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.accumulate_grad_batches", "0"], "--trainer.accumulate_grad_batches 0 is less than 1"),
        (["--trainer.check_val_every_n_epoch", "0"], "--trainer.check_val_every_n_epoch 0 is less than 1"),
        (["--trainer.gradient_clip_val", "-1"], "--trainer.gradient_clip_val -1 is less than 0: null turns it off"),
        (["--trainer.log_every_n_steps", "-3"], "--trainer.log_every_n_steps -3 is less than 0"),
        (["--trainer.limit_train_batches", "0"], "--trainer.limit_train_batches 0 leaves nothing to fit"),
        (["--trainer.devices", "3.7"], "--trainer.devices 3.7 is neither a number of devices nor a list"),
        (["--data.img_size", "null"], "--data.img_size is null: ImageFolderDataModule needs a value, such as 224"),
        (["--data.batch_size", "null"], "--data.batch_size is null"),
        (["--model.label_smoothing", "null"], "--model.label_smoothing is null: ClassificationTask needs a value"),
        (["--model.lr", "null"], "--model.lr is null"),
        (["--model.weight_decay", "-0.1"], "weight_decay -0.1 is negative"),
        (["--model.args.mlp_ratio", "-1"], "mlp_ratio=-1 is not positive"),
        (["--model.args.lookup_mlp_ratio", "0"], "lookup_mlp_ratio=0 is not positive"),
        (["--ckpt_path", ""], "--ckpt_path is empty"),
    ],
)
def test_of_fit(options: list[str], message: str, last: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    config = last.parents[3] / "tiny.yaml"
    said = run(capsys, "fit", "--config", config, "--output_dir", tmp_path, *options, code=2)[1]
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.rglob("*.ckpt"))


def test_no_data_at_all(capsys: pytest.CaptureFixture) -> None:
    said = run(capsys, "fit", code=2)[1]
    assert "--data is missing: give it, or a --config that has it; known are" in said


@pytest.mark.parametrize("name", ["mlp_ratio", "lookup_mlp_ratio"])
def test_hidden_widths(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=-1 is not positive"):
        create_model("lookupvit_tiny_patch4_32", **{name: -1})


def test_of_checkpoints(last: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(last.parents[2], tmp_path / "outputs" / "tiny")  # what an empty path would find
    images = ["--data.predict_path", picture(tmp_path / "x.png"), "--output_dir", tmp_path / "out"]
    assert "--ckpt_path is empty" in run(capsys, "test", "--ckpt_path", "", code=2)[1]
    nothing = ("predict", "--ckpt_path", last, *images, "--trainer.limit_predict_batches", 0)
    assert "leaves nothing to predict" in run(capsys, *nothing, code=2)[1]
    Path("no.json").write_text("trainer: {}")
    assert "cascade no.json" in run(capsys, "predict", "--ckpt_path", last, *images, "--cascade", "no.json", code=2)[1]
    said = run(capsys, "predict", "--ckpt_path", last, *images, "--data.img_size", 64)[1]
    assert "(that is at 32x32 px, not at the 64x64 px here)" in said
    far = ("test", "--ckpt_path", "https://127.0.0.1:9/x.ckpt", "--config", last.parents[3] / "tiny.yaml")
    run(capsys, *far, code=2)
    assert "--limit 0 leaves no images" in run(capsys, "knn", last, "--limit", 0, code=2)[1]
    assert "/dev/null does not exist" in run(capsys, "cost", "/dev/null", code=2)[1]
    assert "--device tpu: give cpu or cuda" in run(capsys, "cost", last, "--device", "tpu", code=2)[1]
    assert "--args" in run(capsys, "cost", last, "--args", '{"num_classes": "x"}', code=2)[1]


def test_of_exports(last: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """An export alone predicts what its checkpoint predicts, and does not pretend to go on training."""
    folder, images = tmp_path / "model", ["--data.predict_path", picture(tmp_path / "x.png")]
    run(capsys, "export", last, "--format", "folder", "--output", folder)
    for path, output in ((last, "a"), (folder, "b"), (folder / "model.safetensors", "c")):
        run(capsys, "predict", "--ckpt_path", path, *images, "--output_dir", tmp_path / output)
    first, *others = (
        json.loads(next((tmp_path / output).rglob("predictions.jsonl")).read_text()) for output in ("a", "b", "c")
    )
    assert [first] * 2 == others and first["predictions"][0]["class"] in ("tench", "goldfish", "great white shark")
    config = last.parents[3] / "tiny.yaml"
    assert "holds weights alone" in run(capsys, "fit", "--config", config, "--ckpt_path", folder, code=2)[1]
    said = run(capsys, "test", "--ckpt_path", folder, "--data.root", "x", code=2)[1]
    assert "does not say which data it is of" in said and "add --data CLASS, such as ImageFolderDataModule" in said
    (tmp_path / "x.onnx").write_bytes(b"\x08\x0a")
    assert "is a program, for onnxruntime" in run(capsys, "knn", tmp_path / "x.onnx", code=2)[1]
