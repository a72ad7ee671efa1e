"""Reports: there and back, as tables, as a picture."""

import csv
import io

import pytest

from lookupvit.bench.report import Report, format_value, plot


@pytest.fixture
def report() -> Report:
    rows = [
        {"model": "ViT", "px": 224, "ms": 100.0, "faster": 1.0, "fewer ops": 1.0},
        {"model": "LookupViT | 5x5", "px": 224, "ms": 40.125, "faster": 2.5, "fewer ops": 2.78, "saved": None},
        {"model": "ViT", "px": 384, "ms": 1234.5, "faster": 1.0, "fewer ops": 1.0},
    ]
    return Report("Inference", rows, {"device": "a CPU", "threads": 2, "cuda": None}, ["one note"], ["px"])


def test_json_round_trip(report):
    assert Report.from_json(report.to_json()) == report


def test_markdown(report):
    lines = report.to_markdown().splitlines()
    assert lines[0] == "### Inference"
    assert lines[2] == "device a CPU, threads 2"
    assert lines[4] == "| model | px | ms | faster | fewer ops | saved |"
    assert lines[5] == "| --- | ---: | ---: | ---: | ---: | --- |"
    assert lines[7] == "| LookupViT \\| 5x5 | 224 | 40.1 | 2.5 | 2.78 | – |"
    assert "- one note" in lines
    assert lines[-1].startswith("`ms`: median")


def test_csv_keeps_all_digits(report):
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert rows[1]["ms"] == "40.125" and rows[0]["saved"] == ""


def test_plain_text_is_aligned(report, capsys):
    report.show(plain=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Inference"
    assert {line.index(cell) for line, cell in zip(lines[2:6], ("px", "224", "224", "384"), strict=True)} == {17}


def test_rich_table_shows_every_cell(report, capsys):
    report.show()
    out = capsys.readouterr().out
    assert all(cell in out for row in report.cells() for cell in row) and "one note" in out


def test_files(report, tmp_path):
    paths = report.save(tmp_path / "new", "table")
    assert [path.suffix for path in paths] == [".md", ".json", ".csv", ".png"]
    assert paths[-1].read_bytes().startswith(b"\x89PNG")
    assert Report.from_json(paths[1].read_text()) == report
    assert [path.suffix for path in report.save(tmp_path, "bare", picture=False)] == [".md", ".json", ".csv"]


def test_nothing_to_draw(tmp_path):
    assert not plot(Report("Operators", [{"operator": "mm", "ms": 1.0}]), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (3, "3"), (0.012345, "0.0123"), (2.5, "2.5"), (99.96, "100"), (123.44, "123.4"), (1234.5, "1234")],
)
def test_format(value, text):
    assert format_value(value) == text
