"""The notebooks run from top to bottom, and are kept with outputs that can be read on the web."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ABSOLUTE = re.compile(r"(?<![\w.:/<>-])/(?:[\w.-]+/)+[\w.-]+")  # a path that only one machine has


def run(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """Executes a notebook in a copy of the repository's layout; a cell that fails raises with its traceback."""
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "notebooks").mkdir()
    content = nbformat.read(notebook, as_version=4)
    where = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(content, timeout=600, kernel_name="python3", resources=where).execute()
    return content


def texts(content: nbformat.NotebookNode) -> list[str]:
    """What the cells printed, as text."""
    found = []
    for cell in content.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error", output
            found += [output.text] if output.output_type == "stream" else []
            found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return found


def pictures(content: nbformat.NotebookNode) -> int:
    """How many pictures it shows."""
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_there_are_notebooks() -> None:
    assert [file.stem for file in NOTEBOOKS][:2] == ["01_quickstart", "02_compression_sweep"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs_on_a_handful_of_images(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOOKUPVIT_QUICK", "1")
    content = run(notebook, tmp_path)
    assert pictures(content) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_notebook_runs_as_a_reader_would_run_it(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOOKUPVIT_QUICK", raising=False)
    run(notebook, tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda file: file.stem)
def test_kept_outputs_are_whole_small_and_of_no_machine(notebook: Path) -> None:
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    counts = [cell.execution_count for cell in content.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # run once, from top to bottom
    assert pictures(content) >= 2 and notebook.stat().st_size < 300_000
    assert [path for text in texts(content) for path in ABSOLUTE.findall(text)] == []
