"""`lookupvit cost`: the table, the budgets, the files, and mistakes in one line."""

import csv
import json
import re

import pytest
import torch

from lookupvit import create_model
from lookupvit.analysis import budget
from lookupvit.analysis.cost import count_macs, model_macs
from lookupvit.cli import main as cli

TINY = ["--model", "lookupvit_tiny_patch4_32", "--args", '{"depth": 1, "num_classes": 10}']


def run(capsys, *argv: str) -> str:
    assert cli.main(["cost", *argv]) == 0
    return capsys.readouterr().out


def fail(capsys, *argv: str) -> str:
    assert cli.main(["cost", *argv]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("lookupvit cost: error: ") and err.count("\n") == 1
    return err


def test_table_and_files(capsys, tmp_path):
    sizes = ["--img_size", "32", "40x24", "--compressed_size", "3x3", "2x5"]
    out = run(capsys, *TINY, *sizes, "--batch", "4", "--output", str(tmp_path))
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    with (tmp_path / "cost.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == [row["model"] for row in rows]
    assert [row["model"] for row in rows] == 2 * (["ViT"] + 4 * ["LookupViT 3x3"] + 4 * ["LookupViT 2x5"])
    assert [row["path"] for row in rows[1:5]] == ["plain", "absorbed", "tiled", "auto: absorbed"]
    assert {row["agrees"] for row in rows} == {"yes"}
    assert "LookupViT 2x5" in out and "40x24" in out and "wrote" in out

    model = create_model("lookupvit_tiny_patch4_32", depth=1, num_classes=10, path="plain")
    vit = create_model("vit_tiny_patch4_32", depth=1, num_classes=10)
    plain, macs = rows[1], count_macs(model, 32, 3)
    assert plain["MMACs"] * 1e6 == pytest.approx(macs)
    assert plain["gather"] * 1e6 == pytest.approx(model_macs(model, 32, 3)["gather"])
    assert plain["fewer ops"] == pytest.approx(count_macs(vit) / macs)
    assert plain["M params"] * 1e6 == sum(p.numel() for p in model.parameters())
    assert rows[0]["M params"] * 1e6 == sum(p.numel() for p in vit.parameters())
    assert rows[0]["saved MiB"] > plain["saved MiB"] > rows[2]["saved MiB"] > 0


def test_defaults(capsys, tmp_path):
    run(capsys, *TINY, "--path", "auto", "--head", "compressed", "--output", str(tmp_path))
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert [row["model"] for row in rows] == ["ViT", "LookupViT 3x3", "LookupViT 5x5", "LookupViT 7x7"]  # 10x10 is none
    model = create_model("lookupvit_tiny_patch4_32", depth=1, num_classes=10)
    assert rows[1]["MMACs"] * 1e6 == pytest.approx(count_macs(model, 32, 3, "compressed"))

    out = run(capsys, "--model", "lookupvit_tiny_patch4_32", "--args", '{"depth": 1, "grad_checkpointing": true}')
    assert "saved MiB is not known" in out
    out = run(capsys, "--model", "lookupvit_tiny_patch4_32", "--args", '{"depth": 1, "reuse": "renormalize"}')
    assert "absorbed" in out and "tiled" not in out
    out = run(capsys, "--model", "vit_tiny_patch4_32", "--args", '{"depth": 1}')
    assert "ViT" in out and "LookupViT" not in out


def test_budget_in_macs(capsys):
    model = create_model("lookupvit_tiny_patch4_32", depth=1, num_classes=10)
    enough = count_macs(model, 32, 4) / 1e9
    out = " ".join(run(capsys, *TINY, "--budget_gmacs", str(enough + 1e-6)).split())
    assert "4x4 is the largest compressed size at 32x32 px" in out and "the next, 5x5, would cost" in out
    assert "LookupViT 4x4" in out and "LookupViT 3x3" not in out
    assert "3x3 is the largest" in run(
        capsys, *TINY, "--budget_gmacs", str(enough + 1e-6), "--candidates", "2x2", "3x3", "6x6"
    )
    assert "the smallest compressed size, 1x1, costs" in fail(capsys, *TINY, "--budget_gmacs", "0.001")


def test_budget_in_time(capsys, monkeypatch):
    calls = []

    def fake(model, size, img_size, batch, head):
        calls.append(next(model.parameters()).device.type)
        return 10.0 * size[0]

    monkeypatch.setattr(budget, "call_ms", fake)
    out = " ".join(run(capsys, *TINY, "--budget_ms", "45", "--batch", "2").split())
    assert re.search(r"4x4 is the largest .* for 45 ms at batch 2 .* costs 40 ms, 50 images/s", out)
    assert set(calls) == {"cpu"}  # shapes alone take no time
    assert run(capsys, *TINY, "--budget_ms", "1000").count("8x8 is the largest") == 1


def test_a_checkpoint_knows_its_model(capsys, tmp_path):
    saved = {"name": "lookupvit_tiny_patch4_32", "num_classes": 7, "img_size": (24, 32), "args": {"depth": 1}}
    saved |= {"compressed_size": None, "compressed_sizes": [[2, 2], [4, 6]]}
    torch.save({"hyper_parameters": saved, "state_dict": {}}, tmp_path / "x.ckpt")
    out = run(capsys, "--ckpt_path", str(tmp_path / "x.ckpt"), "--path", "auto", "--output", str(tmp_path))
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert "4x6: trained, its score is not known" in out and "3x3: trained" not in out
    trained = rows.pop(1)
    assert trained["model"] == "LookupViT 2x2"
    assert [row["model"] for row in rows[1:]] == ["LookupViT 3x3", "LookupViT 4x6", "LookupViT 5x5"]
    assert {row["px"] for row in rows} == {"24x32"}
    model = create_model("lookupvit_tiny_patch4_32", num_classes=7, img_size=(24, 32), depth=1, compressed_size=(4, 6))
    assert rows[2]["MMACs"] * 1e6 == pytest.approx(count_macs(model))
    torch.save({"state_dict": {}}, tmp_path / "y.ckpt")
    assert "does not say which model" in fail(capsys, "--ckpt_path", str(tmp_path / "y.ckpt"))


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "cost needs a CHECKPOINT or --model NAME"),
        (["x.ckpt", *TINY], "cost needs a CHECKPOINT or --model NAME, one of them"),
        (["nope/x.ckpt"], "checkpoint nope/x.ckpt does not exist"),
        (["--ckpt_path", "nope.ckpt"], "checkpoint nope.ckpt does not exist"),
        (["--model", "lookupvit_tiny_patch4_23"], "did you mean lookupvit_tiny_patch4_32"),
        ([*TINY, "--compressed_size", "9x9"], "does not fit the lookup grid (8, 8)"),
        ([*TINY, "--compressed_size", "3by3"], "'3by3' is not of the form 3x3"),
        ([*TINY, "--img_size", "30"], "is not a multiple of the patch size"),
        ([*TINY, "--img_size", "big"], "'big' is no image size: give 224, or 224x320"),
        ([*TINY, "--path", "measured"], "invalid choice: 'measured'"),
        ([*TINY[:2], "--args", "depth=3"], "is not JSON"),
        ([*TINY[:2], "--args", "[1]"], "is not a mapping"),
        ([*TINY[:2], "--args", '{"deph": 3}'], "takes no argument 'deph'"),
        ([*TINY, "--candidates", "3x3"], "give --budget_gmacs or --budget_ms too"),
        ([*TINY, "--budget_gmacs", "1", "--budget_ms", "1"], "one of them"),
        ([*TINY, "--budget_gmacs", "1", "--path", "plain", "absorbed"], "along one path"),
        ([*TINY, "--batch", "0"], "--batch"),
        (["--model", "vit_tiny_patch4_32", "--budget_gmacs", "1"], "ViT has no compressed size"),
        (["--model", "vit_tiny_patch4_32", "--path", "plain"], "leave --compressed_size, --path and --head out"),
    ],
)
def test_mistakes_take_one_line(capsys, argv, message):
    assert message in fail(capsys, *argv)


def test_help_names_the_command(capsys):
    assert cli.main(["--help"]) == 0
    assert "cost  " in capsys.readouterr().out
