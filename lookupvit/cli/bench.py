"""`lookupvit bench SUITE [options]`: arguments to suites, suites to files."""

import argparse
import os
import sys
from collections.abc import Callable

from lookupvit.bench import everything
from lookupvit.bench.cases import Settings
from lookupvit.bench.report import Report
from lookupvit.bench.timing import MIN_ROUNDS
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.writing import check_writable

# torch's profiler reports its starts and stops on stderr, in the midst of tables
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_QUICK = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 10}


def parser() -> argparse.ArgumentParser:
    """The parser of all suites."""
    top = OneLineParser(prog="lookupvit bench", description="Measures LookupViT beside what one would use instead.")
    suites = top.add_subparsers(dest="suite", required=True, metavar="SUITE", parser_class=OneLineParser)

    one = suites.add_parser("inference", help="throughput and latency against ViT, ToMe and LookViT")
    _model_options(one)
    one.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="images per call")
    one.add_argument("--img_size", type=int, nargs="+", default=[224], help="pixels, multiples of 16")
    one.add_argument("--compressed_head", action="store_true", help="LookupViT also with its compressed head alone")
    _common_options(one)

    one = suites.add_parser("train", help="the training step: time, saved activations, peak memory")
    _model_options(one, tome=())
    one.add_argument("--batch", type=int, default=8, help="images per step")
    one.add_argument("--img_size", type=int, default=224, help="pixels")
    one.add_argument("--optimizer", choices=("adamw", "none"), default="adamw", help="none: forward and backward alone")
    _common_options(one)

    one = suites.add_parser("block", help="one block, each path, images and video shapes")
    one.add_argument("--shapes", type=_shape, nargs="+", metavar="NxM", help="lookup x compressed, e.g. 3136x200")
    one.add_argument("--batch", type=int, default=4)
    one.add_argument("--embed_dim", type=int, default=768)
    one.add_argument("--num_heads", type=int, default=12)
    one.add_argument("--paths", nargs="+", help="paths of the block; all by default")
    one.add_argument("--training", action="store_true", help="forward and backward pass, with memory")
    _common_options(one)

    one = suites.add_parser("launches", help="one block: operators, copies and bytes of A, counted, not timed")
    one.add_argument("--shapes", type=_shape, nargs="+", metavar="NxM", default=[(196, 25)], help="lookup x compressed")
    one.add_argument("--batch", type=int, default=8)
    one.add_argument("--embed_dim", type=int, default=768)
    one.add_argument("--num_heads", type=int, default=12)
    one.add_argument("--paths", nargs="+", default=["plain", "absorbed", "tiled"], help="paths of the block")
    one.add_argument("--drop_path", type=float, default=0.1, help="of the rows with stochastic depth")
    one.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="whose operators; it need not be there")
    one.add_output_dir("outputs/bench", "folder for the tables")
    one.add_argument("--name", help="name of the files; the suite's by default")

    one = suites.add_parser("dense", help="backbones of dense prediction beside global and windowed ViT")
    _model_options(one, tome=None, sizes=(5, 10))
    one.add_argument("--batch", type=int, default=1, help="images per call")
    one.add_argument("--img_size", type=int, nargs="+", default=[512, 1024], help="pixels, multiples of 16")
    one.add_argument("--heads", nargs="+", choices=("linear", "pyramid"), default=["linear", "pyramid"])
    one.add_argument("--modes", nargs="+", choices=("forward", "training step"), default=["forward", "training step"])
    _common_options(one)

    one = suites.add_parser("gpu", help="all tables for one GPU in under 8 minutes")
    one.add_argument("--device", default="cuda")
    one.add_argument("--model", default="base")
    one.add_argument("--budget", type=float, default=330.0, help="seconds after which no table is started")
    one.add_argument("--train_batch", type=int, default=64)
    one.add_argument("--quick", action="store_true", help="a tiny model, to try the program out")
    one.add_output_dir("outputs/bench", "folder for the tables")

    one = suites.add_parser("all", help="every CPU table of docs/PERFORMANCE.md, in minutes")
    everything.add_options(one)
    return top


def bench_main(argv: list[str] | None = None) -> None:
    """Runs one suite, given by `argv` or else by the process; prints its table and writes it to the output folder.

    Raises:
        ValueError: For arguments that do not exist or do not fit, in one line.
    """
    args = parser().parse_args(sys.argv[1:] if argv is None else argv)
    if args.suite not in ("gpu", "launches") and args.rounds < MIN_ROUNDS and not args.quick:
        raise ValueError(f"--rounds {args.rounds} is too few for a median: give {MIN_ROUNDS} or more, or --quick")
    check_writable(args.output)  # before minutes of measurements
    if args.suite == "all":
        everything.run_all(args)
        return
    if args.suite == "gpu":
        from lookupvit.bench import gpu

        plan = gpu.quick_plan(args.device) if args.quick else gpu.Plan(args.device, args.model)
        if not args.quick:
            plan.budget, plan.train_batch = args.budget, args.train_batch
        gpu.run(plan, args.output)
        print(f"wrote {args.output}/gpu.md and a .json and .csv for each table")
        return
    if args.suite == "launches":
        from lookupvit.bench.launches import launches

        sizes = (tuple(args.shapes), args.batch, args.embed_dim, args.num_heads)
        _write(args, "launches", launches(*sizes, tuple(args.paths), args.drop_path, args.device))
        return
    if args.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: no CUDA device is visible; use --device cpu")
    settings = Settings(args.device, args.dtype, args.precision, args.compile, args.threads, args.quick)
    _write(args, *_SUITES[args.suite](args, settings))


def _write(args: argparse.Namespace, stem: str, report: Report) -> None:
    report.show()
    for path in report.save(args.output, args.name or stem):
        print(f"wrote {path}")


def main(argv: list[str] | None = None) -> int:
    """`bench_main` for a script: a user's mistake becomes one line on stderr and the exit code 2."""
    try:
        bench_main(argv)
    except (ValueError, OSError) as error:
        print(f"lookupvit bench: error: {error}", file=sys.stderr)
        return 2
    return 0


def _inference(args: argparse.Namespace, settings: Settings) -> tuple[str, Report]:
    from lookupvit.bench import suites

    img_sizes, batches, sizes, tome, extra = args.img_size, args.batch, args.sizes, args.tome, {}
    if args.quick:
        args.model, img_sizes, batches, sizes, tome, args.rounds, extra = "tiny", (80,), (1, 2), (3, 5), (4,), 2, _QUICK
    if args.profile:
        return _profile(args, settings, img_sizes[0], max(batches), tuple(sizes), extra, training=False)
    report = suites.inference(
        settings,
        args.model,
        tuple(img_sizes),
        tuple(batches),
        tuple(sizes),
        tuple(tome),
        args.rounds,
        compressed_head=args.compressed_head,
        **extra,
    )
    return "inference", report


def _train(args: argparse.Namespace, settings: Settings) -> tuple[str, Report]:
    from lookupvit.bench import suites

    img_size, batch, sizes, tome, extra = args.img_size, args.batch, args.sizes, args.tome, {}
    if args.quick:
        args.model, img_size, batch, sizes, args.rounds, extra = "tiny", 80, 2, (3, 5), 2, _QUICK
    if args.profile:
        return _profile(args, settings, img_size, batch, tuple(sizes), extra, training=True)
    args_ = (args.model, img_size, batch, tuple(sizes), tuple(tome), args.rounds)
    return "train", suites.train(settings, *args_, optimizer=args.optimizer, **extra)


def _block(args: argparse.Namespace, settings: Settings) -> tuple[str, Report]:
    from lookupvit.bench import block

    shapes = tuple(args.shapes or block.IMAGE_SHAPES + block.VIDEO_SHAPES)
    batch, dim, heads = args.batch, args.embed_dim, args.num_heads
    if args.quick:
        shapes, batch, dim, heads, args.rounds = ((49, 9), (64, 16)), 2, 32, 2, 2
    if args.profile:
        raise ValueError("--profile goes with the suites inference and train")
    paths = tuple(args.paths or block.PATHS)
    return "block", block.block(settings, shapes, batch, dim, heads, args.training, paths, args.rounds)


def _dense(args: argparse.Namespace, settings: Settings) -> tuple[str, Report]:
    from lookupvit.bench import dense

    img_sizes, sizes, extra = args.img_size, args.sizes, {}
    if args.profile:
        raise ValueError("--profile goes with the suites inference and train")
    if any(side % 16 for side in img_sizes):
        raise ValueError(f"--img_size {' '.join(map(str, img_sizes))}: patches are 16 px wide, give multiples of 16")
    if args.quick:
        args.model, img_sizes, sizes, args.rounds, extra = "tiny", (240,), (3, 5), 2, {**_QUICK, "depth": 4}
        del extra["num_classes"]
    given = (args.model, tuple(img_sizes), tuple(sizes), tuple(args.heads), tuple(args.modes), args.batch, args.rounds)
    return "dense", dense.dense(settings, *given, **extra)


def _profile(
    args: argparse.Namespace,
    settings: Settings,
    img_size: int,
    batch: int,
    sizes: tuple[int, ...],
    extra: dict,
    training: bool,
) -> tuple[str, Report]:
    """The most expensive operators of LookupViT at the first of the sizes."""
    import torch

    from lookupvit.bench import suites
    from lookupvit.bench.cases import DTYPES, image_cases
    from lookupvit.bench.profile import top_operators
    from lookupvit.bench.report import environment

    settings.apply()
    cases, _ = image_cases(args.model, img_size, sizes[:1], (), look_vit=False, **extra)
    case = cases[-1]
    suites.place([case], settings, training)
    images = torch.randn(batch, 3, img_size, img_size, device=settings.device)
    if training:
        targets = torch.zeros(batch, dtype=torch.int64, device=settings.device)
        call = suites.training_step(case.forward_loss(images, targets, settings), case, None)
    else:
        call = case.inference(images.to(DTYPES[settings.dtype]), settings)
    title = f"Most expensive operators, {args.suite}, {args.model}/16 {case.name}, {img_size} px, batch {batch}"
    conditions = environment(settings.device) | settings.describe()
    return f"profile_{args.suite}", Report(title, top_operators(call, settings.device), conditions)


_SUITES: dict[str, Callable[[argparse.Namespace, Settings], tuple[str, Report]]] = {
    "inference": _inference,
    "train": _train,
    "block": _block,
    "dense": _dense,
}


def _shape(text: str) -> tuple[int, int]:
    try:
        n, m = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NxM, such as 3136x200") from None
    return n, m


def _model_options(
    one: OneLineParser, tome: tuple[int, ...] | None = (8, 13, 16), sizes: tuple[int, ...] = (3, 5, 7, 10)
) -> None:
    one.add_argument("--model", default="base", help="tiny, small, base, large or huge; patches of 16 pixels")
    one.add_argument("--sizes", type=int, nargs="+", default=list(sizes), help="compressed sizes, s for s x s")
    if tome is not None:
        help_text = "numbers r of ToMe; none leaves ToMe out"
        one.add_argument("--tome", type=int, nargs="*", default=list(tome), help=help_text)


def _common_options(one: OneLineParser) -> None:
    one.add_argument("--device", default="cpu", help="cpu or cuda")
    one.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    one.add_argument(
        "--precision", choices=("highest", "high", "medium"), default="highest", help="precision of fp32 products"
    )
    one.add_argument("--compile", nargs="?", const="default", choices=("default", "reduce-overhead", "max-autotune"))
    one.add_argument("--threads", type=int, help="CPU threads")
    one.add_argument("--rounds", type=int, default=9, help=f"rounds, {MIN_ROUNDS} or more")
    one.add_argument("--profile", action="store_true", help="print the ten most expensive operators instead")
    one.add_argument("--quick", action="store_true", help="tiny shapes and two rounds, to try the program out")
    one.add_output_dir("outputs/bench", "folder for the tables")
    one.add_argument("--name", help="name of the files; the suite's by default")
