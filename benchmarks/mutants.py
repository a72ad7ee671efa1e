"""Mutation testing: are the tests able to fail? A seeded sample of small changes, each tried by the tests that reach it.

    make mutants                                         # the whole sample; finished ones are not tried again
    python benchmarks/mutants.py --sample 300 --minutes 30
    python benchmarks/mutants.py --retry                 # the survivors again, after tests were added
    python benchmarks/mutants.py --show                  # the kept results, and every survivor

cosmic-ray makes the changes (an operator, a comparison, a number, a truth value, a condition, a loop ...). The sample is
drawn by a hash of each line's own text: it stays the same when other lines or files change. Which tests reach a line is
found first, by running them once under coverage; kept in `outputs/mutants/`. Every mutant is a forked process that
works in a copy of the project, runs the fastest of its tests first and stops at the first failure.

Results: `docs/results/mutants.json`. Changes that change nothing, and why: `benchmarks/mutants_equivalent.json`.
"""

import argparse
import ast
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, EQUIVALENT = ROOT / "docs" / "results" / "mutants.json", ROOT / "benchmarks" / "mutants_equivalent.json"
MAP = ROOT / "outputs" / "mutants"
SOURCES = ["lookupvit/model", "lookupvit/tasks", "lookupvit/metrics", "lookupvit/analysis/cost.py", "datamodules"]
# of the data: transforms, samplers and loaders; not the readers of layouts and the drawn demo sets
LOADERS = (
    "transforms video_transforms image_datamodule resumable shards webdataset shard_plan test_sets caption_dataset "
    "video_datamodule video_dataset video_sampling workers"
).split()
TESTS = ["tests/model", "tests/tasks", "tests/metrics", "tests/datamodules", "tests/analysis"]
COPIED = ["lookupvit", "datamodules", "tests", "benchmarks", "configs", "docs", "pyproject.toml", "README.md"]
# Imported once, before the forks. Nothing of this project.
HEAVY = (
    "torch torchvision.transforms.v2 lightning.pytorch timm torchmetrics scipy.ndimage pytest numpy jsonargparse rich"
)
SURVIVED = ("survived", "not reached")


@dataclass(frozen=True)
class Mutant:
    """One change: the `occurrence`-th that the operator finds in the file; `lines` are its statement's."""

    file: str
    operator: str
    occurrence: int
    line: int
    lines: range
    key: str


def candidates(file: str, text: str, seed: int) -> Iterator[Mutant]:
    """One mutant of every place of a file that an operator can change, outside of annotations."""
    import cosmic_ray.plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    operators = {name: cosmic_ray.plugins.get_operator(name) for name in sorted(cosmic_ray.plugins.operator_names())}
    operators = {name: operator() for name, operator in operators.items() if not operator.arguments()}
    tree, rows = ast.parse(text), text.splitlines()
    hints = list(_annotations(tree))
    found, same = Counter(), Counter()
    places: dict[tuple, Mutant] = {}
    for node in ast_nodes(get_ast(text)):
        for name, operator in operators.items():
            for index, (start, end) in enumerate(operator.mutation_positions(node)):
                occurrence, found[name] = found[name], found[name] + 1
                if any(low <= start and end <= high for low, high in hints):
                    continue
                label = f"{seed} {file} {name} {index} {start[1]} {rows[start[0] - 1].strip()}"
                same[label] += 1
                key = hashlib.sha256(f"{label} {same[label]}".encode()).hexdigest()[:16]
                mutant = Mutant(file, name, occurrence, start[0], _statement(tree, start[0]), key)
                if (start, end) not in places or key < places[start, end].key:
                    places[start, end] = mutant
    yield from places.values()


def _annotations(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(tree):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if isinstance(hint, ast.AST):
                yield (hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)


def _statement(tree: ast.AST, line: int) -> range:
    """Lines of the smallest statement around; of a function's header, those of its body."""
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and n.lineno <= line <= n.end_lineno]
    if not around:
        return range(0)
    node = min(around, key=lambda n: n.end_lineno - n.lineno)
    if isinstance(node, ast.FunctionDef):
        return range(node.body[0].lineno, node.end_lineno + 1)
    inside = getattr(node, "body", None)  # of `if` and `for`: the header alone
    return range(node.lineno, max(line, inside[0].lineno - 1) + 1 if inside else node.end_lineno + 1)


def forked(work: Callable[[Path], int], folder: Path, limit: float) -> tuple[int | None, Any]:
    """Runs `work(answer)` in a process of its own; its exit code (None: killed after `limit` seconds) and its answer."""
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
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0) + report.duration
        if not report.passed:  # also skipped ones: they can't fail
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
        items[:] = sorted((i for i in items if i.nodeid in self.wanted), key=lambda i: self.wanted[i.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
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

    What runs at import is reached by every test that executes anything of the file.
    """
    own = {t: v["seconds"] for t, v in reached.items() if set(v["lines"].get(mutant.file, ())) & set(mutant.lines)}
    if not own:
        own = {t: v["seconds"] for t, v in reached.items() if mutant.file in v["lines"]}
    chosen, total = {}, 0.0
    for test in sorted(own, key=own.get):
        total += own[test]
        if chosen and total > most:
            return chosen, True
        chosen[test] = own[test]
    return chosen, False


def mapped(folder: Path, sources: list[str]) -> dict[str, Any]:
    """What each test reaches; test files are run again where they or a source have changed."""
    MAP.mkdir(parents=True, exist_ok=True)
    state = hashlib.sha256(b"".join((folder / source).read_bytes() for source in sources)).hexdigest()
    reached: dict[str, Any] = {}
    for test in sorted(str(p.relative_to(folder)) for place in TESTS for p in (folder / place).rglob("test_*.py")):
        kept = MAP / (test.replace("/", "-") + ".json")
        digest = hashlib.sha256(state.encode() + (folder / test).read_bytes()).hexdigest()
        known = json.loads(kept.read_text()) if kept.is_file() else {}
        if known.get("digest") != digest:
            start = time.monotonic()
            code, found = forked(lambda answer, test=test: reach(test, sources, answer), folder, 900)
            print(f"reach {test}: exit {code}, {len(found or {})} tests, {time.monotonic() - start:.0f} s", flush=True)
            known = {"digest": digest, "tests": found or {}}
            kept.write_text(json.dumps(known))
        reached |= known["tests"]
    return reached


def try_mutant(mutant: Mutant, folder: Path, reached: dict[str, Any], most: float) -> dict[str, Any]:
    """The result of one mutant, with its changed lines."""
    import cosmic_ray.plugins
    from cosmic_ray.mutating import mutate_code

    path = folder / mutant.file
    text, stamp = path.read_text(), path.stat().st_mtime
    changed = mutate_code(text, cosmic_ray.plugins.get_operator(mutant.operator)(), mutant.occurrence)
    before, after = text.splitlines(), changed.splitlines()
    differ = [(a, b) for a, b in zip(before, after, strict=False) if a != b] or [(before[mutant.line - 1], "")]
    result = {"file": mutant.file, "line": mutant.line, "operator": mutant.operator.removeprefix("core/")}
    result |= {"before": differ[0][0].strip(), "after": differ[0][1].strip()}
    wanted, partial = tests_of(mutant, reached, most)
    if not wanted:
        return result | {"outcome": "not reached"}
    path.write_text(changed)
    os.utime(path, (stamp + 1000, stamp + 1000))  # so that no compiled file fits it
    start = time.monotonic()
    try:
        code, by = forked(lambda answer: attempt(wanted, answer), folder, 90 + 4 * sum(wanted.values()))
    finally:
        path.write_text(text)
        os.utime(path, (stamp, stamp))
    outcome = "timeout" if code is None else "survived" if code == 0 else "killed"
    result |= {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "tests": len(wanted)}
    return result | ({"by": by} if by else {}) | ({"partial": True} if partial and outcome == "survived" else {})


def summary(results: dict[str, Any], drawn: int) -> dict[str, Any]:
    """Counts; the rate leaves out those that change nothing."""
    why = (
        {(e["file"], e["before"], e["after"]) for e in json.loads(EQUIVALENT.read_text())}
        if EQUIVALENT.is_file()
        else set()
    )
    for result in results.values():
        same = (result["file"], result["before"], result["after"]) in why
        if same and result["outcome"] in SURVIVED:
            result["equivalent"] = True
    alive = [r for r in results.values() if r["outcome"] in SURVIVED and not r.get("equivalent")]
    killed = sum(r["outcome"] in ("killed", "timeout") for r in results.values())
    same = len(results) - killed - len(alive)
    rate = round(100 * killed / max(1, killed + len(alive)), 1)
    return {
        "drawn": drawn,
        "tried": len(results),
        "killed": killed,
        "survived": len(alive),
        "equivalent": same,
        "killed_percent": rate,
    }


def main() -> None:
    """Draws, maps, tries, and writes after every mutant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--most", type=float, default=60, help="seconds of tests for one mutant")
    parser.add_argument("--retry", action="store_true", help="try the survivors again")
    parser.add_argument("--show", action="store_true", help="print what is kept, try nothing")
    args = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"results": {}}
    paths = [p for s in SOURCES for p in ([ROOT / s] if s.endswith(".py") else sorted((ROOT / s).rglob("*.py")))]
    sources = [str(p.relative_to(ROOT)) for p in paths if p.parts[-2] != "datamodules" or p.stem in LOADERS]
    if args.show:
        drawn = list(kept["results"])
    else:
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        pool = [m for source in sources for m in candidates(source, (ROOT / source).read_text(), args.seed)]
        sample = sorted(pool, key=lambda m: m.key)[: args.sample]
        print(f"{len(sample)} of {len(pool)} mutants in {len(sources)} files", flush=True)
        drawn = [m.key for m in sample]
        with tempfile.TemporaryDirectory() as place:
            run(sample, sources, Path(place) / "project", kept, args)
    results = {key: kept["results"][key] for key in drawn if key in kept["results"]}
    for result in sorted(results.values(), key=lambda r: (r["file"], r["line"])):
        if result["outcome"] in SURVIVED:
            note = " (changes nothing)" if result.get("equivalent") else ""
            print(
                f"{result['outcome']}{note} {result['file']}:{result['line']}\n  - {result['before']}\n  + {result['after']}"
            )
    print(summary(results, len(drawn)))


def run(sample: list[Mutant], sources: list[str], folder: Path, kept: dict[str, Any], args: argparse.Namespace) -> None:
    """Tries what is not known yet."""
    end = time.monotonic() + 60 * args.minutes
    ignore = shutil.ignore_patterns("__pycache__")
    for name in COPIED:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(
            ROOT / name, _made(folder) / name, **({"ignore": ignore} if (ROOT / name).is_dir() else {})
        )
    for name in HEAVY.split():
        importlib.import_module(name)
    reached = mapped(folder, sources)
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for place, mutant in enumerate(sample):
        known = kept["results"].get(mutant.key)
        if known and not (args.retry and known["outcome"] in SURVIVED and not known.get("equivalent")):
            continue
        if time.monotonic() > end:
            break
        result = kept["results"][mutant.key] = try_mutant(mutant, folder, reached, args.most)
        print(
            f"{place + 1}/{len(sample)} {result['outcome']} {mutant.file}:{mutant.line} {result['after'][:70]}",
            flush=True,
        )
        write(kept, [m.key for m in sample], args)


def write(kept: dict[str, Any], drawn: list[str], args: argparse.Namespace) -> None:
    """The results of the sample, under its size and seed."""
    import torch

    kept["results"] = {key: kept["results"][key] for key in drawn if key in kept["results"]}
    head = {
        "command": f"python benchmarks/mutants.py --sample {args.sample} --seed {args.seed}",
        "torch": torch.__version__,
    }
    head |= summary(kept["results"], len(drawn))
    RESULTS.write_text(json.dumps(head | {"results": kept["results"]}, indent=1) + "\n")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    main()
