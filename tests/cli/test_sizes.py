"""What a size costs and is known to score: said wherever one is chosen or runs, and asked of any checkpoint."""

import json
from pathlib import Path

import pytest
import test_answers
import torch
from test_answers import picture, run

from lookupvit import load_model
from lookupvit.analysis import budget
from lookupvit.analysis.cost import count_macs
from lookupvit.checkpoints.contents import read_contents

last = test_answers.last  # a fixture


def test_a_budget_of_time_is_measured_where_it_runs(
    last: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = []

    def call_ms(model: torch.nn.Module, size: tuple, *others: object) -> float:
        timed.append((size, torch.is_autocast_enabled("cpu")))
        return 10.0 * size[0]

    monkeypatch.setattr(budget, "call_ms", call_ms)
    images = ["--data.predict_path", picture(tmp_path / "x.png"), "--output_dir", tmp_path]
    said = run(capsys, "predict", "--ckpt_path", last, "--budget_ms", 45, *images)[1]
    cost = f"{count_macs(load_model(last), 32, (2, 2)) / 1e9:.4g}"
    assert (
        f"2x2 is the largest trained compressed size for 45 ms per call with one image on this machine (cpu): it \
costs 20 ms and {cost} GMACs; trained, val/top1"
        in said
    )
    assert timed == [((2, 2), False)]
    low = ("predict", "--ckpt_path", last, "--budget_ms", 15, "--trainer.precision", "bf16-mixed", *images)
    assert "the smallest trained compressed size, 2x2, costs 20" in run(capsys, *low, code=2)[1]
    assert timed[1:] == [((2, 2), True)]
    said = run(capsys, *low, "--untrained_sizes", "true")[1]
    assert "Warning: 1x1 is the largest compressed size for 15 ms" in said and "it costs 10 ms" in said
    assert "two budgets" in run(capsys, *low, "--budget_gmacs", 1, code=2)[1]
    again = ("fit", "--ckpt_path", last, "--budget_ms", 45, "--output_dir", tmp_path)
    assert "budget_ms is measured anew on each machine" in run(capsys, *again, code=2)[1]


def test_what_runs_is_said_with_its_cost_and_score(last: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    one, two = (f"{count_macs(load_model(last), 32, (side, side)) / 1e9:.4g}" for side in (1, 2))
    score = 100 * read_contents(last).score((2, 2))[1]
    wanted = f"2x2: {two} GMACs per image; trained, val/top1 {score:.2f} %"
    images = ["--data.predict_path", picture(tmp_path / "x.png"), "--output_dir", tmp_path]
    for argv in (("predict", "--ckpt_path", last, *images), ("test", "--ckpt_path", last)):
        assert run(capsys, *argv)[1].count(wanted) == 1
    said = run(capsys, "validate", "--ckpt_path", last, "--model.eval_compressed_sizes", "[[1,1],[2,2]]")[1]
    assert wanted in said and f"1x1: {one} GMACs per image; the model was not trained at that size" in said


@pytest.mark.parametrize("form", ["file", "run", "experiment", "folder"])
def test_the_cost_of_a_checkpoint(form: str, last: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = {"file": last, "run": last.parents[1], "experiment": last.parents[2]}.get(form, tmp_path / "folder")
    if form == "folder":
        run(capsys, "export", last, "--format", "folder", "--output", given)
    out = run(capsys, "cost", given, "--path", "auto", "--output_dir", tmp_path)[0]
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    cost = {row["model"]: row["MMACs"] for row in rows}["LookupViT 2x2"]
    assert cost == pytest.approx(count_macs(load_model(last), 32, (2, 2)) / 1e6)
    assert "2x2: trained, val/top1" in out
    (tmp_path / "none").mkdir()
    assert "holds neither a run's last.ckpt nor an exported model" in run(capsys, "cost", tmp_path / "none", code=2)[1]
