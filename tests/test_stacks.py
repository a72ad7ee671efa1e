"""The supported stacks stand in one place; what installs, says and runs them agrees with it."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import stacks  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}


def test_the_oldest_stack_is_the_lower_bound_and_the_readme_names_them_all():
    readme = " ".join((ROOT / "README.md").read_text().split())
    for name, versions in stacks.stacks().items():
        for package, version in versions.items():
            assert version in REQUIRED[package].specifier
            if name == "oldest":
                bounds = {Version(part.version) for part in REQUIRED[package].specifier if part.operator == ">="}
                assert bounds == {Version(version)}  # 2.11 is 2.11.0
        if versions:
            assert re.search(f"torch {versions['torch']} (with|and) torchvision {versions['torchvision']}", readme)
    assert stacks.stacks()["newest"] == {}


def test_withdrawn_uploads_are_refused():
    assert not {"2.6.2", "2.6.3"} & {
        str(v) for v in REQUIRED["lightning"].specifier.filter(["2.6.1", "2.6.2", "2.6.3"])
    }


def test_the_constraints_are_of_a_stack_and_allowed_by_what_the_project_asks_for():
    files = list((ROOT / "constraints").glob("*.txt"))
    assert files
    for file in files:
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        exact = dict(re.fullmatch(r"([\w.-]+)==([\w.!]+)", line).groups() for line in lines)
        exact = {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in exact.items()}
        for package, version in stacks.stacks()[file.stem].items():
            assert exact[package] == version
        for package, requirement in REQUIRED.items():
            assert exact[re.sub(r"[-_.]+", "-", package).lower()] in requirement.specifier


def test_the_table_and_what_it_counts(tmp_path: Path):
    report = tmp_path / "report.xml"
    report.write_text('<testsuites><testsuite tests="9" failures="1" errors="2" skipped="1"/></testsuites>')
    counts = stacks.count(report)
    assert counts == {"passed": 5, "failed": 3, "skipped": 1} and stacks.count(tmp_path / "none")["passed"] == 0
    row = {"stack": "oldest", "torch": "2.11.0", "torchvision": "0.26.0", **counts, "seconds": 71}
    head, line = stacks.table([row]).splitlines()
    assert head.split() == list(stacks.COLUMNS) and line.split() == ["oldest", "2.11.0", "0.26.0", "5", "3", "1", "71"]
    assert head.index("seconds") == line.index("71")


def test_continuous_integration_runs_the_oldest_stack_s_core():
    assert "make test-stacks STACKS='--only oldest --core'" in (ROOT / ".ci" / "run").read_text()
    assert all((ROOT / path).exists() for path in stacks.CORE)
    with pytest.raises(SystemExit) as stopped:
        stacks.main(["--core", "--freeze"])
    assert stopped.value.code == 2
