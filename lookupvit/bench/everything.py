"""`lookupvit bench all`: every CPU table of docs/PERFORMANCE.md, one after the other, and one page of them."""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from lookupvit.writing import write_text

# name of the files: (suite, arguments)
PLAN = {
    "inference_base_224": ("inference", "--batch 1 8 --sizes 3 5 10 --tome 16"),
    "inference_base_512": ("inference", "--batch 1 --img_size 512 --sizes 5 --tome"),
    "inference_small_1024": ("inference", "--model small --batch 1 --img_size 1024 --sizes 7 --tome"),
    "train_base_224": ("train", "--sizes 3 5"),
    "block_video": ("block", "--shapes 3136x200 --batch 2"),
    "block_video_training": ("block", "--shapes 3136x200 --batch 2 --training"),
    "profile_inference": ("inference", "--profile --sizes 5"),
    "profile_train": ("train", "--profile --sizes 5"),
    "data_500px": ("data", "--render 500 --batches 1 --per_class 7"),
    "data_jpegs": ("data", "--img_size 32 --crop_padding 4"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `bench all`."""
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--jpegs", help="folder with train/CLASS/*.jpg of 32 px such as CIFAR-10's, for the data path")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--precision", choices=("highest", "high", "medium"), default="highest")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--only", nargs="+", choices=tuple(PLAN), help="these tables alone")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and two rounds, to try the program out")
    parser.add_argument("--output_dir", "--output", dest="output", default="outputs/bench", help="folder of the tables")


def commands(args: argparse.Namespace) -> tuple[dict[str, list[str]], list[str]]:
    """What to run.

    Args:
        args: Parsed options of `add_options`.

    Returns:
        Arguments of a Python process for each table, and lines on what is left out.
    """
    data = Path(__file__).resolve().parents[2] / "benchmarks" / "data.py"
    run, notes = {}, []
    for name, (suite, options) in PLAN.items():
        if args.only and name not in args.only:
            continue
        rest = [*shlex.split(options), "--output", args.output, "--name", name]
        rest += ["--quick"] if args.quick else ["--rounds", str(args.rounds)]
        if suite != "data":
            rest += ["--dtype", args.dtype, "--precision", args.precision]
            rest += ["--threads", str(args.threads)] if args.threads else []
            run[name] = ["-m", "lookupvit", "bench", suite, *rest]
        elif not data.is_file():
            notes.append(f"{name} was left out: benchmarks/data.py is in the repository, not in the installed package")
        elif name == "data_jpegs" and not args.jpegs:
            notes.append(f"{name} was left out: give --jpegs FOLDER, with train/CLASS/*.jpg in it")
        else:
            run[name] = [str(data), *(["--root", args.jpegs] if name == "data_jpegs" else []), *rest]
    return run, notes


def run_all(args: argparse.Namespace) -> None:
    """Runs the tables, each in a process of its own, and writes all.md.

    Args:
        args: Parsed options of `add_options`.

    Raises:
        ValueError: Naming the tables that failed, after all have run.
    """
    run, notes = commands(args)
    output = Path(args.output)
    pages, failed = [], []
    for name, command in run.items():
        start = time.monotonic()
        # a process of its own: no table inherits the memory pools and threads of the one before
        code = subprocess.run([sys.executable, *command]).returncode
        print(f"{name}: {'done' if code == 0 else f'failed with code {code}'}, {time.monotonic() - start:.0f} s\n")
        if code:
            failed.append(name)
            continue
        shown = shlex.join(["benchmarks/data.py" if word.endswith("benchmarks/data.py") else word for word in command])
        pages.append(f"{(output / f'{name}.md').read_text(encoding='utf-8')}\n`python {shown}`\n")
    output.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*pages, *(f"- {note}" for note in notes), ""])
    write_text(output / "all.md", text)
    print("\n".join([*notes, f"wrote {output / 'all.md'}"]))
    if failed:
        raise ValueError(f"these tables failed, their errors are above: {', '.join(failed)}")
