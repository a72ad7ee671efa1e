"""Every suite from its command line to its files, on tiny models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lookupvit.analysis.cost import count_macs
from lookupvit.bench.cases import BASELINE, Settings, image_cases
from lookupvit.bench.gpu import best_batch
from lookupvit.bench.suites import place
from lookupvit.cli.bench import bench_main, everything, main, parser

TINY = {"embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 7}
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def same_precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def rows_of(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / f"{name}.json").read_text())["rows"]


def check_ratios(rows: list[dict], baseline: str) -> None:
    assert rows[0]["model"] == baseline
    for row in rows:
        assert row["realised"] == pytest.approx(row["faster"] / row["fewer ops"])
        assert row["min"] <= row["ms"]
        if row["model"] == baseline:
            assert row["faster"] == row["fewer ops"] == 1


def test_inference(tmp_path, capsys):
    bench_main(["inference", "--quick", "--output", str(tmp_path), "--name", "it", "--precision", "medium"])
    rows = rows_of(tmp_path, "it")
    check_ratios(rows, BASELINE)
    names = [BASELINE, "LookupViT 3x3", "LookupViT 5x5", "ToMe r=4"]
    assert [(row["model"], row["batch"]) for row in rows if "LookViT" not in row["model"]] == [
        (name, batch) for batch in (1, 2) for name in names
    ]
    assert rows[0]["floor ops"] > 0 and rows[0]["floor bytes"] > 0
    assert "float32_matmul_precision medium" in (tmp_path / "it.md").read_text()
    assert "LookupViT 5x5" in capsys.readouterr().out


def test_training_step(tmp_path):
    bench_main(["train", "--quick", "--dtype", "bf16", "--output", str(tmp_path)])
    rows = rows_of(tmp_path, "train")
    check_ratios(rows, BASELINE)
    assert all(row["saved MiB"] > 0 and row["peak MiB"] > 0 for row in rows)
    assert [row["saved"] for row in rows] == [row["saved MiB"] / rows[0]["saved MiB"] for row in rows]


@pytest.mark.parametrize("training", [False, True])
def test_block(tmp_path, training):
    bench_main(
        ["block", "--quick", "--paths", "plain", "absorbed", "--output", str(tmp_path)] + ["--training"] * training
    )
    rows = rows_of(tmp_path, "block")
    check_ratios(rows, "ViT block (timm)")
    assert [(row["N"], row["M"]) for row in rows[::3]] == [(49, 9), (64, 16)]
    if not training:  # (2 N^2 D + 12 N D^2) and (3 N M + 2 M^2) D + (4 N + 15 M) D^2 with N, M, D = 49, 9, 32
        assert rows[0]["GMACs"] * 1e9 == pytest.approx(2 * 49**2 * 32 + 12 * 49 * 32**2)
        assert rows[1]["GMACs"] * 1e9 == pytest.approx((3 * 49 * 9 + 2 * 81) * 32 + (4 * 49 + 15 * 9) * 32**2)
    assert ("saved MiB" in rows[0]) == training


@pytest.mark.parametrize("suite", ["inference", "train"])
def test_profile(tmp_path, suite):
    bench_main([suite, "--quick", "--profile", "--output", str(tmp_path)])
    rows = rows_of(tmp_path, f"profile_{suite}")
    assert len(rows) == 10 and sum(row["percent"] for row in rows) <= 100.01
    assert [row["ms"] for row in rows] == sorted((row["ms"] for row in rows), reverse=True)
    assert any(row["operator"] == "aten::addmm" for row in rows)


def test_gpu_program_needs_little_and_runs_on_a_cpu(tmp_path):
    blocked = "import sys; sys.modules.update(dict.fromkeys(('rich', 'lightning', 'matplotlib', 'torchmetrics')))"
    code = f"{blocked}; from lookupvit.cli.bench import bench_main; bench_main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "gpu", "--device", "cpu", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path, "gpu_eager_80")
    check_ratios(rows, BASELINE)
    assert {row["batches"] for row in rows} == {"1", "8", "best"}
    page = (tmp_path / "gpu.md").read_text()
    assert "### Inference, tiny/16, eager, 80 px" in page and "### Training step" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line(capsys):
    assert main(["gpu"]) == 2
    assert main(["inference", "--device", "cuda"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("no CUDA device is visible" in line for line in lines)


def test_best_batch():
    # rates b / (1 + b / 64): 21.3, 32, 42.7, 51.2 at 32, 64, 128, 256; the last two gain less than 1.4
    assert best_batch(lambda b: 1 + b / 64, limit=1024, gain=1.4) == 256
    assert best_batch(lambda b: 1.0 if b <= 8 else None) == 8  # out of memory at 16
    assert best_batch(lambda b: float(b)) == 1  # no gain at all
    assert best_batch(lambda b: {1: 1.0, 2: 2.0, 4: 1.0}.get(b, 99.0)) == 4  # one step without gain is forgiven
    with pytest.raises(ValueError, match="not even a batch of one"):
        best_batch(lambda b: None)


def test_cases_and_their_operations():
    cases, _ = image_cases("tiny", 80, (3, 5), (4,), compressed_head=True, look_vit=False, **TINY)
    names = [BASELINE, "LookupViT 3x3", "LookupViT 3x3, compressed head", "LookupViT 5x5"]
    assert [case.name for case in cases] == [*names, "LookupViT 5x5, compressed head", "ToMe r=4"]
    assert cases[3].macs == count_macs(cases[3].model, 80, (5, 5))
    assert cases[2].macs < cases[1].macs and cases[-1].macs < cases[0].macs


def test_loss_is_the_mean_over_the_heads():
    cases, _ = image_cases("tiny", 80, (3,), (2,), look_vit=False, **TINY)
    settings = Settings()
    place(cases, settings)
    images, targets = torch.randn(2, 3, 80, 80), torch.tensor([1, 6])
    with torch.no_grad():
        for case in cases:
            model = case.model
            if case.name.startswith("LookupViT"):
                logits = model.forward_logits(model.forward_features(images, (3, 3)))
                both = [-F.log_softmax(z, -1)[[0, 1], targets].mean() for z in logits.values()]
                expected = (both[0] + both[1]) / 2
            else:
                expected = -F.log_softmax(model(images), -1)[[0, 1], targets].mean()
            torch.testing.assert_close(case.forward_loss(images, targets, settings)(), expected)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["inference", "--rounds", "3"], "--rounds 3 is too few"),
        (["inference", "--model", "giant"], "unknown model 'giant': choose one of base, huge"),
        (["block", "--shapes", "12by3"], "'12by3' is not of the form NxM"),
        (["block", "--paths", "fast", "--quick"], "path='fast' is not known"),
        (["block", "--profile", "--quick"], "--profile goes with"),
        (["speed"], "invalid choice: 'speed'"),
        (["train", "--colour", "red"], "unrecognized arguments: --colour red"),
    ],
)
def test_mistakes_are_one_line(argv, text, capsys, tmp_path):
    if argv[0] != "speed":
        argv = [*argv, "--output", str(tmp_path)]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and text in error


def test_plan_of_all_parses():
    args = parser().parse_args(["all", "--jpegs", "pictures", "--threads", "2"])
    run, notes = everything.commands(args)
    assert list(run) == list(everything.PLAN) and not notes
    for name, command in run.items():
        if command[0] == "-m":
            assert command[:3] == ["-m", "lookupvit", "bench"]
            assert parser().parse_args(command[3:]).name == name
    run, notes = everything.commands(parser().parse_args(["all", "--only", "data_jpegs", "train_base_224"]))
    assert list(run) == ["train_base_224"] and notes[0].startswith("data_jpegs was left out: give --jpegs")


def test_all_writes_one_page(tmp_path):
    bench_main(["all", "--quick", "--only", "profile_inference", "--output", str(tmp_path)])
    page = (tmp_path / "all.md").read_text()
    assert "Most expensive operators" in page and "`python -m lookupvit bench inference --profile" in page


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["inference", "train"])
def test_compiled(tmp_path, suite):
    bench_main([suite, "--quick", "--compile", "--output", str(tmp_path)])
    check_ratios(rows_of(tmp_path, suite), BASELINE)
