"""Hostile files of every kind: nothing runs, is written or fetched, and each is refused in one line or does no harm.

Each case runs in a forked process in a folder of its own, with 6 GB of memory, where starting a program, opening a
connection and importing a module named evil are noted. `make fuzz` runs them beside the damaged files.

    python benchmarks/hostile.py [--only checkpoint]
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import hostile_data  # noqa: E402, F401 (enters its cases)
import hostile_dense  # noqa: E402, F401 (likewise)
import hostile_pictures  # noqa: E402, F401 (likewise)
from fuzz import apart, refused, run  # noqa: E402
from hostile_files import CASES, base, quiet  # noqa: E402

MEMORY = 6 * 2**30
MINE = "cat shards/_info.json"  # what the user's own pipe: of some cases is, for a file that no file names
_EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Data: pass\nclass Task: pass\n"


def watch() -> list[str]:
    """What was started or connected to in this process, from now on; none of it happens."""
    seen: list[str] = []

    def note(kind: str) -> Callable[..., None]:
        def refuse(*args: object, **options: object) -> None:
            seen.append(f"{kind} {args[1:2] or args!r}")
            raise OSError(f"{kind} is not for hostile files")

        return refuse

    start, refuse = subprocess.Popen.__init__, note("a program")

    def program(self: subprocess.Popen, command: object, *args: object, **options: object) -> None:
        (start if command == MINE else refuse)(self, command, *args, **options)

    subprocess.Popen.__init__ = program
    os.system = os.popen = note("a shell")
    socket.socket.connect = note("a connection")
    socket.getaddrinfo = note("an address")
    return seen


def one(make: Callable, folder: Path) -> str:
    """The judgement of one case, in a forked process.

    Args:
        make: Writes the files of the case below the present folder, and gives the arguments of a command, or a
            function that gives "refused" or "harmless".
        folder: Of the case.
    """
    os.chdir(folder)
    Path("evil.py").write_text(_EVIL)
    Path("victim").write_text("whole")
    sys.path.insert(0, str(folder))
    os.environ["SECRET"] = "s3cr3t-of-the-environment"
    task = make()
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = {path for path in folder.rglob("*") if "out" not in path.parts}
    seen, printed = watch(), ""
    if callable(task):
        answer = task()
    else:
        code, out, errors = run(task)
        printed = out + errors
        answer = "harmless" if code == 0 else refused(code, errors)
        if not all(c.isprintable() for c in errors):
            answer = f"wrong: control characters in {errors!r}"
    new = {path.name for path in folder.rglob("*") if "out" not in path.parts} - {path.name for path in before}
    new -= {"__pycache__", "lightning_logs"}
    if answer == "harmless":  # what `test` and `validate` write of their own accord
        new -= {f"{name}.{end}" for name in ("test", "validate") for end in ("json", "csv")}
    if seen:
        return f"wrong: started {seen}"
    if new or "evil" in sys.modules or Path("victim").read_text() != "whole":
        return f"wrong: left {sorted(new)}, or ran code, or changed the victim"
    return "wrong: the environment leaked" if os.environ["SECRET"] in printed else answer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--every", type=int, default=1, help="only each n-th case")
    parser.add_argument("--limit", type=float, default=60, help="seconds of one case")
    parser.add_argument("--verbose", action="store_true", help="print each case")
    args = parser.parse_args(argv)
    import torch

    torch.set_num_threads(1)
    begun, counts, bad = time.monotonic(), {}, []
    with tempfile.TemporaryDirectory() as name, quiet():
        os.environ["HOSTILE_BASE"] = str(base(Path(name) / "base"))
        chosen = [case for case in CASES if case.startswith(args.only)][:: args.every]
        for case in chosen:
            folder = Path(name) / "".join(c if c.isalnum() else "_" for c in case)
            folder.mkdir()
            answer = apart(lambda c=case, f=folder: one(CASES[c], f), args.limit)
            counts.setdefault(case.split()[0], Counter())[answer.split(":")[0]] += 1
            if args.verbose:
                print(f"{time.monotonic() - begun:5.0f} s  {case}: {answer}", flush=True)
            if answer not in ("refused", "harmless"):
                bad.append(f"{case}: {answer}")
                print(bad[-1], flush=True)
    print("\n| hostile | cases | answers |\n|---|---|---|")
    for kind, answers in counts.items():
        print(f"| {kind} | {answers.total()} | {', '.join(f'{n} {answer}' for answer, n in sorted(answers.items()))} |")
    print(f"\n{len(chosen)} hostile files, {len(bad)} bad answers, {time.monotonic() - begun:.0f} s")
    print(json.dumps(bad, indent=1) if bad else "nothing ran, nothing was written or fetched")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
