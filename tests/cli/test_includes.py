"""Mappings of included files merge, key by key, as on the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lookupvit.cli.main import main

ABLATION = Path(__file__).parents[2] / "configs" / "experiments" / "ablation"
BASE = {"embed_dim": 96, "depth": 4, "num_heads": 3, "weight_init": "xavier_uniform"}


def resolved(capsys: pytest.CaptureFixture, *argv: object) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", *map(str, argv), "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "own"),
    [("base", {}), ("gather_only", {"infuse": False}), ("weight_init_timm", {"weight_init": "trunc_normal"})],
)
def test_a_variant_says_only_what_it_changes(name: str, own: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    assert resolved(capsys, "--config", ABLATION / f"{name}.yaml")["model"]["init_args"]["args"] == {**BASE, **own}


def test_mappings_merge_over_files_and_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text(
        f"include: {ABLATION / 'base.yaml'}\nmodel: {{init_args: {{args: {{depth: 2}}}}}}\n"
    )
    (tmp_path / "b.yaml").write_text("model: {init_args: {args: {num_heads: 4}, lr: 0.5}}\n")
    files = ["--config", tmp_path / "a.yaml", "--config", tmp_path / "b.yaml"]
    found = resolved(capsys, *files, "--model.args.embed_dim", 64)["model"]["init_args"]
    assert found["args"] == {**BASE, "depth": 2, "num_heads": 4, "embed_dim": 64} and found["lr"] == 0.5


def test_another_class_begins_anew_and_null_empties(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "other.yaml").write_text(
        "model: {class_path: VideoTask, init_args: {name: vivit_tiny_joint_patch8x2_32, args: {depth: 1}}}\n"
    )
    base = ["--config", ABLATION / "base.yaml"]
    found = resolved(capsys, *base, "--config", tmp_path / "other.yaml")["model"]
    assert found["class_path"].endswith("VideoTask") and found["init_args"]["args"] == {"depth": 1}
    (tmp_path / "none.yaml").write_text("model: {init_args: {args: null}}\n")
    (tmp_path / "some.yaml").write_text("include: none.yaml\nmodel: {init_args: {args: {depth: 3}}}\n")
    found = resolved(capsys, *base, "--config", tmp_path / "some.yaml")["model"]["init_args"]
    assert found["args"] == {"depth": 3}
