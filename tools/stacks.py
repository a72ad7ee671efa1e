"""Runs the tests on every supported pair of torch and torchvision, each in an environment of its own; one table.

The pairs are listed in pyproject.toml, [tool.lookupvit.stacks], only. This program needs only the standard library: it
runs before anything is installed.

    python3 tools/stacks.py                        # every pair, the whole suite without the slow tests
    python3 tools/stacks.py --only oldest --core   # what continuous integration adds to `make test`
    python3 tools/stacks.py --only current --freeze    # and constraints/current.txt, if all of it passed
"""

import argparse
import os
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = [
    "tests/model",
    "tests/tasks",
    "tests/test_resume.py",
    "tests/datamodules/loading/test_resumable.py",
    "tests/analysis/test_cost.py",
    "tests/bench/test_tome.py",
    "tests/cli/test_cost.py",
]
COLUMNS = ("stack", "torch", "torchvision", "passed", "failed", "skipped", "seconds")


def stacks() -> dict[str, dict[str, str]]:
    """The pinned packages and versions of each stack by name; empty means the newest that pip finds."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["lookupvit"]["stacks"]


def install(name: str, folder: Path) -> Path:
    """Makes or updates the environment of a stack; returns its Python."""
    python, stamp = folder / "bin" / "python", folder / ".installed"
    wanted = (ROOT / "pyproject.toml").read_text()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pins = [f"{package}=={version}" for package, version in stacks()[name].items()]
    newest = [] if pins else ["--upgrade", "--upgrade-strategy", "eager"]
    command = [python, "-m", "pip", "install", "--quiet", *newest, *pins, "--editable", f"{ROOT}[dev]"]
    subprocess.run(command, check=True)
    stamp.write_text(wanted)
    return python


def count(report: Path) -> dict[str, int]:
    """Tests of a JUnit report by outcome; errors count as failures."""
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if report.is_file():
        for suite in ET.parse(report).getroot().iter("testsuite"):
            for key in totals:
                totals[key] += int(suite.get(key, 0))
    failed = totals["failures"] + totals["errors"]
    return {"passed": totals["tests"] - failed - totals["skipped"], "failed": failed, "skipped": totals["skipped"]}


def test(name: str, folder: Path, core: bool, workers: int) -> tuple[dict[str, object], bool]:
    """Runs the tests of one stack: a row of the table, and whether all is well."""
    python = install(name, folder)
    show = "from importlib.metadata import version as v; print(v('torch'), v('torchvision'))"
    torch, torchvision = subprocess.run([python, "-c", show], check=True, capture_output=True, text=True).stdout.split()
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-m", "not slow", "-n", str(workers), f"--junitxml={report}"]
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    code = subprocess.run([*command, *(CORE if core else [])], cwd=ROOT, env=environment).returncode
    counts = count(report)
    row = {"stack": name, "torch": torch, "torchvision": torchvision, **counts}
    return {**row, "seconds": round(time.monotonic() - start)}, code == 0 and counts["passed"] > 0


def freeze(name: str, python: Path) -> Path:
    """Writes the exact versions of an environment, for `pip install -c`."""
    command = [python, "-m", "pip", "freeze", "--exclude-editable"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    # an address names one machine's files or registry, and a local version one registry's build
    kept = [line.split("+")[0] for line in lines if "==" in line and " @ " not in line]
    file = ROOT / "constraints" / f"{name}.txt"
    file.parent.mkdir(exist_ok=True)
    head = f"# Exact versions of stack {name!r}: pip install -c constraints/{name}.txt -e ."
    file.write_text("\n".join([head, *kept]) + "\n")
    return file


def table(rows: list[dict[str, object]]) -> str:
    """Rows as aligned text."""
    cells = [COLUMNS, *(tuple(str(row[column]) for column in COLUMNS) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if every test of every stack passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(stacks()), default=list(stacks()), help="stacks to run")
    parser.add_argument("--core", action="store_true", help="model, tasks, resume and cost alone")
    parser.add_argument("--freeze", action="store_true", help="write constraints/STACK.txt of those that passed")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".stacks", help="where the environments go, 3 to 8 GB each"
    )
    parser.add_argument("--workers", type=int, default=2, help="workers of pytest-xdist")
    args = parser.parse_args(argv)
    if args.freeze and args.core:
        parser.error("--freeze needs the whole suite: leave --core out")
    rows, fine = [], True
    for name in args.only:
        try:
            row, passed = test(name, args.folder / name, args.core, args.workers)
        except subprocess.CalledProcessError as error:
            print(f"stack {name}: {error}", file=sys.stderr)
            row, passed = {**dict.fromkeys(COLUMNS, "-"), "stack": name, **stacks()[name]}, False
        rows, fine = [*rows, row], fine and passed
        if passed and args.freeze:
            print(f"written: {freeze(name, args.folder / name / 'bin' / 'python')}")
    print(table(rows))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
