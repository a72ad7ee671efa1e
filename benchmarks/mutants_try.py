"""Runs the tests of one mutant in a forked process, and finds out which tests reach which lines."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mutants_draw import Mutant


def forked(work: Callable[[Path], int], folder: Path, limit: float) -> tuple[int | None, Any]:
    """Runs `work(answer)` in a process of its own: exit code (None: stopped after `limit` seconds) and answer."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        os.environ["PYTHONPATH"] = str(folder)
        code = 3
        try:
            code = int(work(answer))
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            break
        time.sleep(0.05)
    else:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return None, None
    return os.waitstatus_to_exitcode(status), json.loads(answer.read_text()) if answer.is_file() else None


class Reached:
    """A pytest plugin: what each test executes, its seconds, and whether it passed."""

    def __init__(self, coverage: Any) -> None:
        self.coverage, self.seconds, self.failed = coverage, {}, set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Counts the lines that run from here on for this test."""
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Adds set-up, test and tear-down."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if not report.passed:  # also skipped tests, which cannot fail
            self.failed.add(report.nodeid)


def reach(test: str, sources: list[str], answer: Path) -> int:
    """Runs a test file under coverage; the answer is `{test: {"seconds", "lines": {file: [lines]}}}`."""
    import coverage
    import pytest

    measured = coverage.Coverage(data_file=None, include=[str(Path.cwd() / source) for source in sources])
    plugin = Reached(measured)
    measured.start()
    code = pytest.main(
        ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib", test], [plugin]
    )
    measured.stop()
    lines: dict[str, dict[str, list[int]]] = {}
    data = measured.get_data()
    for path in data.measured_files():
        for line, contexts in data.contexts_by_lineno(path).items():
            for context in contexts:
                lines.setdefault(context, {}).setdefault(str(Path(path).relative_to(Path.cwd())), []).append(line)
    passed = {t: {"seconds": s, "lines": lines.get(t, {})} for t, s in plugin.seconds.items() if t not in plugin.failed}
    answer.write_text(json.dumps(passed))
    return int(code) if code in (0, 1, 5) else 2


class First:
    """A pytest plugin: only the wanted tests, fastest first; the first that fails."""

    def __init__(self, wanted: dict[str, float]) -> None:
        self.wanted, self.by = wanted, None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Picks and sorts."""
        items[:] = sorted((i for i in items if i.nodeid in self.wanted), key=lambda i: self.wanted[i.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Notes the first failure."""
        if report.failed and self.by is None:
            self.by = report.nodeid


def attempt(wanted: dict[str, float], answer: Path) -> int:
    """Runs tests until one fails; the answer names it."""
    import pytest

    files = list(dict.fromkeys(test.split("::")[0] for test in sorted(wanted, key=wanted.get)))
    plugin = First(wanted)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    code = pytest.main([*options, *files], [plugin])
    answer.write_text(json.dumps(plugin.by or ("import" if code else None)))
    return int(code)


def tests_of(mutant: Mutant, reached: dict[str, Any], most: float) -> tuple[dict[str, float], bool]:
    """Tests that reach the mutant's statement, as `{test: seconds}`, and whether `most` seconds left some out.

    What runs at import is reached by all tests; those that execute more of the file are taken first.
    """
    own = {t: v["seconds"] for t, v in reached.items() if set(v["lines"].get(mutant.file, ())) & set(mutant.lines)}
    if not own:
        own = {t: v["seconds"] for t, v in reached.items()}
    chosen, total = {}, 0.0
    for test in sorted(own, key=lambda t: (mutant.file not in reached[t]["lines"], own[t])):
        total += own[test]
        if chosen and total > most:
            return chosen, True
        chosen[test] = own[test]
    return chosen, False
