"""`lookupvit cost`: what a model costs, term by term and path by path, and what a budget pays for."""

import argparse
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from lookupvit.analysis.budget import BudgetFit, fit_budget
from lookupvit.analysis.cost import backbone_of
from lookupvit.bench.report import environment
from lookupvit.checkpoints import find
from lookupvit.checkpoints.contents import Contents, is_exported, read_contents
from lookupvit.checkpoints.packaged import known
from lookupvit.cli.common.arguments import OneLineParser, as_count, as_pixels, as_size
from lookupvit.cli.cost_table import PATHS, cost_report
from lookupvit.grid import size_name, to_2tuple
from lookupvit.interop.load_model import build_model
from lookupvit.model.layers import HEADS
from lookupvit.model.lookupvit import LookupViT
from lookupvit.model.vit import ViT
from lookupvit.model.zoo import create_model


def cost(argv: list[str]) -> None:
    """Prints the table of costs, or answers a budget; writes files where `--output` is given.

    Raises:
        ValueError: For arguments that do not fit, in one line.
    """
    args = _parser().parse_args(argv)
    if not re.fullmatch(r"cpu|cuda(:\d+)?", args.device):
        raise ValueError(f"--device {args.device}: give cpu or cuda")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {args.device}: no CUDA device is visible; use --device cpu")
    args.ckpt_path = _checkpoint(args)
    contents = Contents("") if args.ckpt_path is None else read_contents(args.ckpt_path)
    build = _builder(args, contents)
    with torch.device("meta"):  # counting needs shapes only
        try:
            model = build()
        except TypeError as error:  # text where a number belongs
            raise ValueError(f"--args {args.args}: {error}") from error
    backbone = backbone_of(model)
    if not isinstance(backbone, LookupViT | ViT) or hasattr(model, "num_frames"):
        raise ValueError(
            f"cost counts image models, not a {type(model).__name__}: choose a lookupvit_ or vit_ name (the GMACs of a "
            "clip stand in what fit prints first)"
        )
    if isinstance(backbone, ViT) and (args.compressed_size or args.path or args.head):
        raise ValueError("a plain ViT has no compressed tokens: leave --compressed_size, --path and --head out")
    img_sizes = args.img_size or [to_2tuple(model.img_size)]
    sizes, notes = args.compressed_size, []
    if args.budget_gmacs is not None or args.budget_ms is not None:
        sizes = []
        for px in img_sizes:
            fit = _answer(args, model, build, px, contents)
            about = f"; {contents.about(fit.size)}" if args.ckpt_path else ""
            notes.append(_sentence(args, fit, px) + about)
            sizes.append(fit.size)
        sizes = list(dict.fromkeys(sizes))
    elif args.untrained_sizes:
        raise ValueError("--untrained_sizes goes with --budget_gmacs or --budget_ms: give one of them too")
    elif args.candidates:
        raise ValueError("--candidates are sizes for a budget to choose from: give --budget_gmacs or --budget_ms too")
    name = args.model or args.ckpt_path
    trained = contents.trained_sizes
    report = cost_report(model, img_sizes, sizes, args.path, args.batch, args.head, name, args.device, trained)
    if sizes is None and trained:
        notes = [f"{size_name(size)}: {contents.about(size)}" for size in trained]
    report.notes = notes + report.notes
    report.show()
    if args.output:
        for path in report.save(args.output, "cost", picture=False):
            print(f"wrote {path}")


def _answer(
    args: argparse.Namespace, model: LookupViT, build: Callable[[], nn.Module], px: tuple[int, int], contents: Contents
) -> BudgetFit:
    if args.budget_ms is not None:
        model = build().to(args.device)
    if args.path and len(args.path) > 1:
        raise ValueError(f"a budget is counted along one path, not {len(args.path)}: give --path once, or leave it out")
    if args.path and isinstance(backbone_of(model), LookupViT):
        model.set_path(args.path[0])
    trained = None if args.untrained_sizes or args.candidates else contents.trained_sizes
    budget = (args.budget_gmacs, args.budget_ms, px, trained or args.candidates, args.batch, args.head)
    return fit_budget(model, *budget, kind="compressed size" if trained is None else "trained compressed size")


def _sentence(args: argparse.Namespace, fit: BudgetFit, px: tuple[int, int]) -> str:
    where = f"at {px[0]}x{px[1]} px"
    if args.budget_gmacs is not None:
        costs, budget = f"{fit.macs / 1e9:.4g}", f"{args.budget_gmacs:g} GMACs"
    else:
        rate = 1000 * args.batch / fit.ms
        budget = f"{args.budget_ms:g} ms at batch {args.batch} ({environment(args.device)['device']})"
        costs = f"{fit.ms:.4g} ms, {rate:.4g} images/s"
    larger = f"; the next, {size_name(fit.next_size)}, would cost {fit.next_cost:.4g}" if fit.next_cost else ""
    return f"{size_name(fit.size)} is the largest compressed size {where} for {budget}: it costs {costs}{larger}"


def _checkpoint(args: argparse.Namespace) -> str | None:
    """The file or exported folder that CHECKPOINT or `--ckpt_path` means; None where a model is named instead."""
    if sum(given is not None for given in (args.checkpoint, args.ckpt_path, args.model)) != 1:
        raise ValueError("cost needs a CHECKPOINT or --model NAME, one of them")
    if args.model is not None:
        return None
    path = Path(find.of_run(args.checkpoint or args.ckpt_path)).expanduser()
    if not path.is_file() and not path.is_dir():
        raise FileNotFoundError(
            f"checkpoint {path} does not exist: give a file, or the folder of a run or an export{known()}"
        )
    if path.is_dir() and not is_exported(path):
        raise FileNotFoundError(f"checkpoint {path}: this folder holds neither a run's last.ckpt nor an exported model")
    return str(path)


def _builder(args: argparse.Namespace, contents: Contents) -> Callable[[], nn.Module]:
    """What builds the model that the arguments name, on whatever device is current."""
    try:
        extra = json.loads(args.args)
    except json.JSONDecodeError as error:
        raise ValueError(f'--args {args.args!r} is not JSON such as {{"depth": 6}}: {error}') from error
    if not isinstance(extra, dict):
        raise ValueError(f'--args {args.args!r} is not a mapping such as {{"depth": 6}}')
    if args.model is not None:
        return partial(create_model, args.model, **extra)
    return partial(build_model, contents, **extra)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit cost",
        description="Multiply-adds by term and path, counted and measured; parameters; memory; what a budget buys.",
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", nargs="?", help="take the model of this file, run's folder or export"
    )
    parser.add_argument("--model", help="name of a model, such as lookupvit_base_patch16_224, in place of CHECKPOINT")
    parser.add_argument("--ckpt_path", help="the same as CHECKPOINT")
    parser.add_argument("--args", default="{}", help="further arguments of the model as JSON, such as '{\"depth\": 6}'")
    parser.add_argument(
        "--img_size", type=as_pixels, nargs="+", help="pixels, 224 or 224x320; the model's own by default"
    )
    text = "sizes such as 3x3 5x5; the paper's by default"
    parser.add_argument("--compressed_size", type=as_size, nargs="+", help=text)
    parser.add_argument("--path", choices=PATHS, nargs="+", help="paths to count; all that the model has by default")
    parser.add_argument("--head", choices=HEADS, help="count one head alone; the model's own by default")
    text = "images per training step, and per call under --budget_ms"
    parser.add_argument("--batch", type=as_count, default=1, help=text)
    text = "find the largest compressed size within so many"
    parser.add_argument("--budget_gmacs", type=float, help=f"{text} GMACs per image")
    parser.add_argument("--budget_ms", type=float, help=f"{text} ms per call, timed here")
    text = "sizes to choose from; by default the trained ones of a checkpoint, or the lookup grid's aspect"
    parser.add_argument("--candidates", type=as_size, nargs="+", help=text)
    text = "choose also among sizes that the checkpoint was not trained at"
    parser.add_argument("--untrained_sizes", action="store_true", help=text)
    text = "cpu or cuda: where the training step runs, and --budget_ms is timed"
    parser.add_argument("--device", default="cpu", help=text)
    parser.add_output_dir(text="folder for cost.md, cost.json and cost.csv")
    return parser
