"""`benchmarks/mutants.py`: what it draws, which tests it takes, and that what is kept fits together."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
TEXT = '''"""A file."""


def half(x: int | None = 4, *, quick: bool = True) -> float | None:
    y = x * 2
    if x > 1 and quick:
        y += 1
    return y
'''


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("mutants")
    finally:
        sys.path.pop(0)


def test_one_mutant_for_each_place_outside_of_annotations(tool: ModuleType) -> None:
    pytest.importorskip("cosmic_ray")
    found, places = tool.draw({"a.py": TEXT}, 100, 0)
    assert places == len(found) + 1  # the star of the header is no product
    assert {mutant.line for mutant in found} == {4, 5, 6, 7}
    assert sum(mutant.line == 4 for mutant in found) == 2  # the 4 and the truth value, not the three `|` of types
    assert {(m.line, m.lines.start, m.lines.stop) for m in found} == {(4, 5, 9), (5, 5, 6), (6, 6, 7), (7, 7, 8)}
    # other lines around it change neither what is drawn nor its key
    moved, _ = tool.draw({"a.py": "import os\n\n\n" + TEXT}, 100, 0)
    assert {m.key: m.operator for m in moved} == {m.key: m.operator for m in found}
    assert {m.key for m in tool.draw({"a.py": TEXT}, 100, 1)[0]}.isdisjoint(m.key for m in found)


def test_the_tests_of_a_line(tool: ModuleType) -> None:
    mutant = tool.Mutant("a.py", "core/NumberReplacer", 0, 5, range(5, 6), "k")
    reached = {
        "slow": {"seconds": 9.0, "lines": {"a.py": [5, 6]}},
        "quick": {"seconds": 1.0, "lines": {"a.py": [5]}},
        "beside": {"seconds": 0.1, "lines": {"a.py": [6], "b.py": [5]}},
    }
    assert tool.tests_of(mutant, reached, 60) == ({"quick": 1.0, "slow": 9.0}, False)
    assert tool.tests_of(mutant, reached, 5) == ({"quick": 1.0}, True)
    at_import = tool.Mutant("a.py", "core/NumberReplacer", 0, 1, range(1, 2), "k")
    assert tool.tests_of(at_import, reached, 60)[0] == {"beside": 0.1, "quick": 1.0, "slow": 9.0}


def test_what_is_kept_adds_up(tool: ModuleType) -> None:
    kept = json.loads(tool.RESULTS.read_text())
    assert kept["tried"] == len(kept["results"]) <= kept["drawn"] >= 300
    assert kept == kept | tool.summary(kept["results"], kept["drawn"])
    assert kept["killed"] + kept["survived"] + kept["equivalent"] == kept["tried"]
    for entry in json.loads(tool.EQUIVALENT.read_text()):
        assert len(entry["why"]) > 20 and entry["before"] != entry["after"]
