"""`lookupvit sweep`: accuracy against cost of one model or many at many compressed sizes."""

import argparse
import shlex
from pathlib import Path

import torch
from rich.console import Console

from lookupvit.bench.report import environment
from lookupvit.bench.timing import MIN_ROUNDS
from lookupvit.cli.common.arguments import (
    OneLineParser,
    as_count,
    as_pixels,
    as_size,
    check_data_options,
    is_data_option,
)
from lookupvit.cli.common.loaded import checkpoint_of, labels_of, load
from lookupvit.cli.launch.options import add_launch_options, launch_of
from lookupvit.cli.sweep import output
from lookupvit.cli.sweep.score import Found, score
from lookupvit.writing import check_writable

_EPILOG = """\
With checkpoints, --data.* options (--data.root DIR) change the data that each was trained on.
With --config, any option of fit (--trainer.max_epochs 2, --model.lr 1e-3) is handed to every run.
"""


def sweep(argv: list[str]) -> None:
    """Scores checkpoints at many sizes, or trains the models first; writes a table, figures and pictures.

    Args:
        argv: Checkpoints or a configuration, sizes, and options of this command; see `lookupvit sweep --help`.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, in one line.
    """
    parser = _parser()
    own, passed = _split(argv, parser)
    args = parser.parse_args(own)
    _check(args, passed)
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(args.output)
    console = Console()
    trained, runs, labels = [], {}, args.labels
    paths = [checkpoint_of(name) for name in args.checkpoints]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"checkpoint {path} does not exist: give the .ckpt file that lookupvit fit wrote")
    if labels is None:
        labels = labels_of(paths)
    check_writable(folder)
    if args.config:
        from lookupvit.cli.sweep.train import described, plan, train

        ways = [way for way in ("single", "multi") if getattr(args, way)] or ["single"]
        runs = {run.name: run for run in plan(args.sizes, ways, args.seeds)}
        if clash := set(runs) & set(labels):
            raise ValueError(f"a checkpoint and a run are both named {clash.pop()}: give other --labels")
        trained = train(args.config, list(runs.values()), args.sizes, folder, passed, console, launch_of(args))
        labels = [*runs, *labels]
        paths = [*(training.checkpoint for training in trained), *paths]
        console.rule("[bold]sweep")
    loaded = [load(path, label, args.sizes, args.head, device) for path, label in zip(paths, labels, strict=True)]
    found = score(
        loaded,
        overrides=_data_options(passed),
        img_sizes=args.img_size or [None],
        split=args.split,
        limit=args.limit,
        batch=args.batch,
        rounds=args.rounds,
        device=device,
        # a model trained at one size is no cascade
        cascades=[one.label for one in loaded if one.label not in runs or runs[one.label].size is None],
    )
    document = {
        "title": args.title,
        "command": shlex.join(["lookupvit", "sweep", *argv]),
        "environment": environment(device),
        "settings": {"split": args.split, "limit": args.limit, "images": found.images, "timed_batch": args.batch},
    }
    if trained:
        document["trainings"] = [described(run, training) for run, training in zip(runs.values(), trained, strict=True)]
    _write(found, runs, document, folder / args.title, console)


def _write(found: Found, runs: dict, document: dict, stem: Path, console: Console) -> None:
    """Writes every file, then prints the tables."""
    contrasts = output.contrasts_of(found, runs)
    files = output.write_tables(document, found, contrasts, stem)
    files += output.write_pictures(found, runs, document, stem)
    files += output.write_cascades(found, stem)
    files.append(output.write_tensorboard(found.rows, contrasts, stem))
    output.print_tables(found, contrasts, document, console)
    console.print("wrote " + ", ".join(map(str, files)), soft_wrap=True, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit sweep",
        usage="lookupvit sweep CHECKPOINT... [options]\n       lookupvit sweep --config BASE.yaml --sizes 3x3 5x5 "
        "[--single] [--multi] [--seeds 0 1] [options]",
        description="Accuracy against multiply-adds and time of models at many compressed sizes.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoints", nargs="*", metavar="CHECKPOINT", help="checkpoints (or folders of runs), LookupViT and ViT"
    )
    text = "compressed sizes; by default those of the checkpoint"
    parser.add_argument("--sizes", nargs="+", type=_image_grid, metavar="HxW", help=text)
    parser.add_argument("--img_size", nargs="+", type=as_pixels, metavar="PX", help="image sizes, 48 or 48x64")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="which images are scored")
    parser.add_argument("--limit", type=as_count, metavar="N", help="score N images, spread evenly over the split")
    parser.add_argument("--head", choices=("both", "compressed", "lookup"), help="the checkpoint's own by default")
    parser.add_argument("--batch", type=as_count, default=64, help="images per call when throughput is timed")
    parser.add_argument("--rounds", type=as_count, default=MIN_ROUNDS, help="rounds of timing; 1 for a quick look")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda by default where there is one")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="names of the checkpoints in tables and pictures")
    parser.add_output_dir("outputs/sweep")
    parser.add_argument("--title", default="sweep", help="name of the files in it")
    training = parser.add_argument_group("training first")
    training.add_argument("--config", metavar="FILE", help="train from this configuration, then sweep what came out")
    training.add_argument("--single", action="store_true", help="one model per size (the default)")
    training.add_argument("--multi", action="store_true", help="one model for all sizes")
    training.add_argument(
        "--seeds", nargs="+", type=int, default=None, metavar="N", help="one training of each per seed (0)"
    )
    add_launch_options(training)
    return parser


def _split(argv: list[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """This command's own arguments, and those of `fit` or the data, which take one value each."""
    known = {option for action in parser._actions for option in action.option_strings}
    own, passed, rest = [], [], list(argv)
    while rest:
        arg = rest.pop(0)
        if not arg.startswith("--") or arg.partition("=")[0] in known:
            own.append(arg)
            continue
        passed.append(arg)
        if "=" not in arg and rest and not rest[0].startswith("--"):
            passed.append(rest.pop(0))
    return own, passed


def _data_options(passed: list[str]) -> list[str]:
    """The options of the data, with their values."""
    chosen, taking = [], False
    for arg in passed:
        taking = is_data_option(arg) if arg.startswith("--") else taking
        chosen += [arg] * taking
    return chosen


def _check(args: argparse.Namespace, passed: list[str]) -> None:
    """Refuses arguments that do not go together; sets the default seed."""
    if not args.checkpoints and not args.config:
        raise ValueError("nothing to sweep: give checkpoints, or --config BASE.yaml to train first")
    if args.config is None:
        for name in ("single", "multi", "seeds", "jobs", "launcher", "slurm"):
            if getattr(args, name):
                raise ValueError(f"--{name} is of training: it needs --config BASE.yaml")
        check_data_options("sweep", passed)
    else:
        if args.sizes is None:
            raise ValueError("--config needs --sizes, such as --sizes 3x3 5x5: they are what the models are trained at")
        if args.img_size:
            raise ValueError("--img_size goes with checkpoints alone: with --config set --data.img_size")
    if args.labels is not None and len(args.labels) != len(args.checkpoints):
        raise ValueError(f"{len(args.labels)} --labels for {len(args.checkpoints)} checkpoints: give one each")
    for name in ("sizes", "img_size", "labels", "seeds"):
        values = getattr(args, name) or []
        if twice := [value for i, value in enumerate(values) if value in values[:i]]:
            raise ValueError(f"--{name} lists {twice[0]} twice: once is enough")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is visible; use --device cpu")
    args.seeds = args.seeds or [0]


def _image_grid(text: str) -> tuple[int, ...]:
    size = as_size(text)
    if len(size) != 2:
        raise argparse.ArgumentTypeError(f"compressed size {text!r} has {len(size)} axes: images have two, such as 3x3")
    return size
