"""Files that users hold, written by version 0.1.0 before its modules moved, go on working: `tests/legacy/`.

`expected.json` holds the logits that the code of that time gave for `wave`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from datamodules import DemoDataModule
from lookupvit import load_model
from lookupvit.cli.main import main

LEGACY = Path(__file__).parent / "legacy"
EXPECTED = json.loads((LEGACY / "expected.json").read_text())
TASKS = ("classification", "vit", "video", "caption")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_gives_the_same_logits(name: str) -> None:
    model = load_model(LEGACY / name).eval()
    shape = (1, 3, *((model.num_frames,) if hasattr(model, "num_frames") else ()), *model.img_size)
    wave = torch.linspace(-1, 1, torch.Size(shape).numel()).sin().view(shape)
    with torch.no_grad():
        torch.testing.assert_close(model(wave)[0], torch.tensor(EXPECTED[name]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TASKS)
def test_a_checkpoint_is_scored_without_its_configuration(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(LEGACY / f"{name}.ckpt", tmp_path)  # scores are written beside it
    assert main(["test", "--ckpt_path", f"{name}.ckpt", "--data.root", str(tmp_path / "data")]) == 0
    assert ("cider" if name == "caption" else "top1") in capsys.readouterr().out


@pytest.mark.parametrize("name", TASKS)
def test_a_configuration_trains_on_from_its_checkpoint(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["fit", "--config", str(LEGACY / f"{name}.yaml"), "--ckpt_path", str(LEGACY / f"{name}.ckpt")]
    assert main([*argv, "--data.root", str(tmp_path / "data"), "--trainer.max_epochs", "2"]) == 0
    assert "epoch 2/2  step 4" in capsys.readouterr().out


def test_a_cascade_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    DemoDataModule(root=str(tmp_path / "data"), train_per_class=1, val_per_class=1).prepare_data()
    argv = ["predict", "--ckpt_path", str(LEGACY / "classification.ckpt"), "--cascade", str(LEGACY / "cascade.json")]
    assert main([*argv, "--data.predict_path", str(tmp_path / "data" / "val")]) == 0
    assert "the cascade answered 10 at 3x3" in capsys.readouterr().out


def test_the_block_named_by_sharding_policies_is_found() -> None:
    policy = {"auto_wrap_policy": ["lookupvit.model.block.LookupViTBlock"], "state_dict_type": "full"}
    strategy = {"class_path": "lightning.pytorch.strategies.FSDPStrategy", "init_args": policy}
    argv = ["fit", "--config", str(LEGACY / "classification.yaml"), "--trainer.strategy", json.dumps(strategy)]
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--print_config"])
    assert stop.value.code == 0
