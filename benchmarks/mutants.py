"""Mutation testing: are the tests able to fail? A seeded sample of small changes, each tried by the tests of its lines.

    make mutants                                         # the whole sample; finished ones are not tried again
    python benchmarks/mutants.py --sample 300 --minutes 30
    python benchmarks/mutants.py --retry                 # the survivors again, after tests were added
    python benchmarks/mutants.py --show                  # the kept results, and every survivor

cosmic-ray makes the changes (to an operator, a comparison, a number, a truth value, a condition ...), one for each
place that it can change, except in annotations. The sample is drawn by a hash of each line's text, so it stays the
same when other lines or files change. Which tests reach a line is found first, by running those of model, tasks,
metrics, data and analysis once under coverage; kept in `outputs/mutants/`. Every mutant is a forked process that
works in a copy of the project, runs the fastest of its tests first and stops at the first failure.

Results: `benchmarks/mutants_results.json`. Changes that change nothing, and why: `benchmarks/mutants_equivalent.json`.
"""

import argparse
import hashlib
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mutants_draw import Mutant, changed, draw
from mutants_try import attempt, forked, reach, tests_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS, EQUIVALENT = ROOT / "benchmarks" / "mutants_results.json", ROOT / "benchmarks" / "mutants_equivalent.json"
MAP = ROOT / "outputs" / "mutants"
# The part of `datamodules` that is mutated: transforms, samplers and loaders, but no layouts and no demo sets.
LOADERS = (
    "images/transforms images/rand_augment images/datamodule loading/resumable loading/workers shards/shards "
    "shards/datamodule shards/plan robustness/sets captions/dataset video/datamodule video/dataset video/sampling "
    "video/transforms"
)
SOURCES = ["lookupvit/model", "lookupvit/tasks", "lookupvit/metrics", "lookupvit/analysis/cost.py"]
SOURCES += [f"datamodules/{name}.py" for name in LOADERS.split()]
TESTS = ["tests/model", "tests/tasks", "tests/metrics", "tests/datamodules", "tests/analysis"]
COPIED = ["lookupvit", "datamodules", "tests", "benchmarks", "configs", "docs", "pyproject.toml", "README.md"]
# Imported once, before the forks: other projects' packages only.
HEAVY = (
    "torch torchvision.transforms.v2 lightning.pytorch timm torchmetrics scipy.ndimage pytest numpy jsonargparse rich"
)
SURVIVED = ("survived", "not reached")


def mapped(folder: Path, sources: list[str]) -> dict[str, Any]:
    """What each test reaches; a test file is run again where it, or a source that it reaches, has changed."""
    MAP.mkdir(parents=True, exist_ok=True)
    reached: dict[str, Any] = {}
    for test in sorted(str(p.relative_to(folder)) for place in TESTS for p in (folder / place).rglob("test_*.py")):
        kept = MAP / (test.replace("/", "-") + ".json")
        known = json.loads(kept.read_text()) if kept.is_file() else {"tests": {}}
        if known.get("digest") != digest(folder, test, known["tests"]):
            start = time.monotonic()
            code, found = forked(lambda answer, test=test: reach(test, sources, answer), folder, 900)
            print(f"reach {test}: exit {code}, {len(found or {})} tests, {time.monotonic() - start:.0f} s", flush=True)
            known = {"digest": digest(folder, test, found or {}), "tests": found or {}}
            kept.write_text(json.dumps(known))
        reached |= known["tests"]
    return reached


def digest(folder: Path, test: str, tests: dict[str, Any]) -> str:
    """Hash of a test file and of the sources that its tests reach."""
    files = [test, *sorted({file for one in tests.values() for file in one["lines"]})]
    there = [(folder / file).read_bytes() if (folder / file).is_file() else b"" for file in files]
    return hashlib.sha256(b"".join(there)).hexdigest()


def try_mutant(mutant: Mutant, folder: Path, reached: dict[str, Any], most: float) -> dict[str, Any]:
    """The result of one mutant, with its changed lines."""
    path = folder / mutant.file
    text, stamp = path.read_text(), path.stat().st_mtime
    code = changed(mutant, text)
    before, after = text.splitlines(), code.splitlines()
    differ = [(a, b) for a, b in zip(before, after, strict=False) if a != b] or [(before[mutant.line - 1], "")]
    result = {"file": mutant.file, "line": mutant.line, "operator": mutant.operator.removeprefix("core/")}
    result |= {"before": differ[0][0].strip(), "after": differ[0][1].strip()}
    wanted, partial = tests_of(mutant, reached, most)
    if not wanted:
        return result | {"outcome": "not reached"}
    path.write_text(code)
    os.utime(path, (stamp + 1000, stamp + 1000))  # so that no compiled file fits it
    start = time.monotonic()
    try:
        status, by = forked(lambda answer: attempt(wanted, answer), folder, 90 + 4 * sum(wanted.values()))
    finally:
        path.write_text(text)
        os.utime(path, (stamp, stamp))
    outcome = "timeout" if status is None else "survived" if status == 0 else "killed"
    result |= {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), "tests": len(wanted)}
    return result | ({"by": by} if by else {}) | ({"partial": True} if partial and outcome == "survived" else {})


def summary(results: dict[str, Any], drawn: int) -> dict[str, Any]:
    """Counts of each outcome; the rate leaves out mutants that change nothing."""
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
    sources = [str(path.relative_to(ROOT)) for path in paths]
    if args.show:
        drawn = list(kept["results"])
    else:
        os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        sample, places = draw({source: (ROOT / source).read_text() for source in sources}, args.sample, args.seed)
        print(f"{len(sample)} of {places} mutants in {len(sources)} files", flush=True)
        drawn = [m.key for m in sample]
        with tempfile.TemporaryDirectory() as place:
            run(sample, sources, Path(place) / "project", kept, args)
    results = {key: kept["results"][key] for key in drawn if key in kept["results"]}
    for result in sorted(results.values(), key=lambda r: (r["file"], r["line"])):
        if result["outcome"] in SURVIVED:
            note = " (changes nothing)" if result.get("equivalent") else ""
            print(f"{result['outcome']}{note} {result['file']}:{result['line']}")
            print(f"  - {result['before']}\n  + {result['after']}")
    print(summary(results, len(drawn)))


def run(sample: list[Mutant], sources: list[str], folder: Path, kept: dict[str, Any], args: argparse.Namespace) -> None:
    """Tries the mutants whose results are not known yet."""
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
