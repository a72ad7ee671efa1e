"""The tables of docs/RESULTS.md are what the kept logs say."""

import importlib.util
import json
import re
import statistics
from pathlib import Path
from types import ModuleType

import pytest

from lookupvit.bench.report import Report

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_document_is_up_to_date(results: ModuleType) -> None:
    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    assert results.filled(text, results.tables(ROOT / "docs" / "results")) == text


def test_an_ablation_worked_out_by_hand(results: ModuleType, tmp_path: Path) -> None:
    shared = {"compressed_size": "3x3", "parameters": 1_500_000, "gmacs": 0.0107}
    found = {
        "base": [
            {**shared, "seed": 0, "top1": 50.0, "seconds": 10},
            {**shared, "seed": 1, "top1": 52.0, "seconds": 20},
        ],
        "other": [
            {**shared, "seed": 0, "top1": 51.0, "seconds": None},
            {**shared, "seed": 1, "top1": 52.0, "seconds": None},
        ],
    }
    document = {"command": "lookupvit ablate A", "baseline": "base", "runs": found}
    document["environment"] = {"device": "CPU", "threads": 2, "torch": "2.15"}
    (tmp_path / "grid.json").write_text(json.dumps(document))
    table = results.tables(tmp_path)["grid"]
    assert table.startswith("`lookupvit ablate A`; CPU, 2 threads; torch 2.15; seeds 0, 1.\n")
    # sd of (50, 52) is sqrt(2), of (51, 52) and of the differences (1, 0) sqrt(1/2)
    assert "| base | 3x3 | 1.50 M | 10.7 | 51.00 ± 1.41 |  | 15 | none at hand for this data |" in table
    assert "| other | 3x3 | 1.50 M | 10.7 | 51.50 ± 0.71 | +0.50 ± 0.71 | - |  |" in table
    text = "A\n<!-- table: grid -->\nold\n<!-- end -->\nB\n"
    assert results.filled(text, {"grid": table}) == f"A\n<!-- table: grid -->\n\n{table}\n<!-- end -->\nB\n"


def test_what_a_benchmark_saved_is_a_table_with_its_command(results: ModuleType, tmp_path: Path) -> None:
    report = Report("Title", [{"way": "a", "ms": 2.0}, {"way": "b", "faster": 1.5}], {"threads": 2}, ["A note"])
    document = json.loads(report.to_json()) | {"command": "python x.py"}
    (tmp_path / "speed.json").write_text(json.dumps(document))
    table = results.tables(tmp_path)["speed"]
    assert table == (
        "`python x.py`; threads 2. A note.\n\n| way | ms | faster |\n|---|---|---|\n| a | 2 | – |\n| b | – | 1.5 |\n"
    )


def test_robustness_worked_out_by_hand(results: ModuleType, tmp_path: Path) -> None:
    def model(name: str, size: str | None, clean: float, fog: list[float], noise: list[float]) -> dict:
        families = {"noise": ("gaussian_noise", "shot_noise", "impulse_noise")}
        severities = {"fog": fog, **dict.fromkeys(families["noise"], noise)}
        corrupted = statistics.mean(statistics.mean(values) for values in severities.values())
        figures = {"clean": clean, "corrupted": corrupted, "relative_drop": 100 * (1 - corrupted / clean)}
        more = {"corrupted_error": 1.5, "sets": {"clean": clean, "sketch": clean / 4}, "top1_by_severity": severities}
        return {"model": name, "compressed_size": size, "gmacs": 0.25, **figures, **more}

    document = {
        "command": "lookupvit robustness A B",
        "environment": {"device": "CPU", "threads": 1, "torch": "2.15"},
        "models": [
            model("vit_seed0", None, 80.0, [60, 40], [70, 50]),
            model("vit_seed1", None, 84.0, [60, 40], [66, 46]),
            model("mine_seed0", "3x3", 80.0, [64, 44], [70, 50]),
            model("mine_seed1", "3x3", 80.0, [62, 42], [66, 46]),
        ],
    }
    (tmp_path / "photos.json").write_text(json.dumps(document))
    tables = results.tables(tmp_path)
    assert tables["photos"].startswith("`lookupvit robustness A B`; CPU, 1 threads; torch 2.15; seeds 0, 1.\n")
    # ViT: (50 + 3 * 60) / 4 = 57.5 and (50 + 3 * 56) / 4 = 54.5; noise 60 and 56. Mine: 58.5 and 55, +1 and +0.5.
    assert "| vit | - | 250 | 82.00 ± 2.83 | 56.00 ± 2.12 |  | 31.62 ± 4.95 | 58.00 ± 2.83 | 1.50 |" in tables["photos"]
    assert "| mine | 3x3 | 250 | 80.00 ± 0.00 | 56.75 ± 2.47 | +0.75 ± 0.35 |" in tables["photos"]
    assert "| top-1 % on | vit | mine 3x3 |" in tables["photos_sets"]
    assert "| sketch | 20.50 ± 0.71 | 20.00 ± 0.00 |" in tables["photos_sets"]
    assert "| fog | 50.00 ± 0.00 | 53.00 ± 1.41 |" in tables["photos_sets"]


@pytest.mark.parametrize(("log", "folder"), [("ablation", "configs/experiments/ablation"), ("video_motion", "configs")])
def test_a_configuration_expects_what_its_log_says(log: str, folder: str) -> None:
    runs = json.loads((ROOT / "docs" / "results" / f"{log}.json").read_text())["runs"]
    for name, seeds in runs.items():
        mean, deviation = re.findall(
            r"# Expected: ([\d.]+) ± ([\d.]+) %", (ROOT / folder / f"{name}.yaml").read_text()
        )[0]
        top1 = [seed["top1"] for seed in seeds]
        assert len(top1) == 3
        assert abs(float(mean) - statistics.mean(top1)) < 0.051
        assert abs(float(deviation) - statistics.stdev(top1)) < 0.051


def test_mistakes_are_one_line(results: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="table gone: no log makes it"):
        results.filled("<!-- table: gone -->\n<!-- end -->", {})
    with pytest.raises(ValueError, match="table grid: add <!-- table: grid -->"):
        results.filled("nothing", {"grid": ""})
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json: no kept log"):
        results.tables(tmp_path)
