"""`lookupvit export`: a trained model as ONNX, as a torch.export program, or as a folder for the Hub."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from lookupvit.analysis.cost import count_macs
from lookupvit.checkpoints.contents import read_contents
from lookupvit.checkpoints.pixels import Pixels, pixels_of
from lookupvit.cli.common.arguments import OneLineParser, as_pixels, as_size
from lookupvit.grid import size_name
from lookupvit.interop.export import ENDINGS, FORMATS, export_model
from lookupvit.interop.load_model import load_model
from lookupvit.interop.program import PROBABILITIES, Preprocessing
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.model.layers import HEADS
from lookupvit.tasks.belonging import say_untrained
from lookupvit.weights.file import contents_of_model
from lookupvit.writing import whole_files

FOLDER = "folder"


def export(argv: list[str]) -> None:
    """Writes the files, each compared with the model, and says what they take and give.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, or a program that differs from the model.
    """
    args = _parser().parse_args(argv)
    source, console = Path(args.checkpoint), Console()
    own = {"img_size": args.img_size} if args.img_size else {}
    model = load_model(source, **own)
    if isinstance(model, Detector):
        raise ValueError(
            f"{source} holds a detector, whose proposals and suppression no program here has: export takes classifiers "
            "and segmenters"
        )
    contents = read_contents(source)
    trained_on = pixels_of(contents)
    given: dict[str, Any] = {} if trained_on is None else trained_on.as_dict()
    if args.mean or args.std:
        if not (args.mean and args.std):
            raise ValueError("--mean and --std go together: give both, three numbers each")
        given |= {"mean": list(args.mean), "std": list(args.std)}
    if given:
        model.pixels = Pixels(**given)
        if not isinstance(model, Segmenter):
            model.note_processor()
    if args.format == FOLDER:
        _write_folder(args, model, console)
        return
    for name in ("half", "note"):
        if getattr(args, name):
            raise ValueError(f"--{name} goes with --format folder: leave it out")
    fused = None
    if args.preprocessing:
        if "mean" not in given:
            raise ValueError(f"{source} does not say how its images were normalised: give --mean and --std")
        probabilities = args.probabilities or contents.hyper_parameters.get("loss") or "softmax"
        fused = Preprocessing(model.pixels.mean, model.pixels.std, probabilities)
    elif args.probabilities:
        raise ValueError("--probabilities goes with --preprocessing: without it the program gives logits")
    sizes = args.compressed_size or ([model.compressed_size] if model.compressed_size else [None])
    groups = [[size] for size in sizes] if args.separate or len(sizes) == 1 else [sizes]
    for group in groups:
        path = _path(args, source, group, several=len(groups) > 1)
        asked = [size for size in group if size is not None] or None
        options = {"head": args.head, "preprocessing": fused, "attention": args.attention}
        options["dynamic_size"] = args.dynamic_size
        difference = export_model(model, path, args.format, compressed_sizes=asked, **options)
        console.print(
            _sentence(path, model, group, fused, difference, args.dynamic_size), soft_wrap=True, highlight=False
        )
    say_untrained(contents, sizes)


def _path(args: argparse.Namespace, source: Path, sizes: list, several: bool) -> Path:
    path = Path(args.output) if args.output else source.with_suffix(ENDINGS[args.format])
    if path.suffix != ENDINGS[args.format]:
        raise ValueError(f"--output {path}: a file of {args.format} ends in {ENDINGS[args.format]}")
    return path.with_stem(f"{path.stem}_{size_name(sizes[0])}") if several else path


def _sentence(
    path: Path, model: nn.Module, sizes: list, fused: Preprocessing | None, difference: float, dynamic: bool
) -> str:
    frames = f"{model.num_frames}, " if hasattr(model, "num_frames") else ""
    height, width = ("Y", "X") if dynamic else model.img_size
    takes = f"uint8 (B, {height}, {width}, 3)" if fused else f"float32 (B, 3, {frames}{height}, {width}), normalised"
    choice = ""
    if len(sizes) > 1:
        choice = f" and size (0 to {len(sizes) - 1} for {', '.join(map(size_name, sizes))})"
    gives = "probabilities" if fused else "logits"
    whole = f", {height}, {width}" if isinstance(model, Segmenter) else ""
    return (
        f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): images {takes}{choice} to {gives} "
        f"(B, {model.num_classes}{whole}); it differs from the model by {difference:.1e}"
    )


def _write_folder(args: argparse.Namespace, model: nn.Module, console: Console) -> None:
    for name in ("compressed_size", "head", "preprocessing", "probabilities", "separate", "dynamic_size"):
        if getattr(args, name):
            raise ValueError(f"--{name} is for programs: a folder holds the model, which takes it in each call")
    if isinstance(model, Segmenter):
        raise ValueError("--format folder is for classifiers: a segmenter's checkpoint holds all there is to share")
    if args.output is None:
        raise ValueError("--format folder needs --output DIR")
    measured = _measured(model, args.note)
    with whole_files(args.output) as folder:
        (model.half() if args.half else model).save_pretrained(folder, model_card_kwargs={"measured": measured})
    names = ", ".join(sorted(file.name for file in Path(args.output).iterdir() if file.is_file()))
    console.print(f"wrote {args.output}: {names}", soft_wrap=True, highlight=False)


def _measured(model: nn.Module, note: str | None) -> str:
    """What a card says of the training, and a table of the validation's scores and the cost at each trained size."""
    said = [] if note is None else ["", note]
    contents = contents_of_model(model)
    sizes = model.trained_sizes or ([None] if model.compressed_size is None else [model.compressed_size])
    rows = [(size, contents.score(size)) for size in sizes]
    if any(score is not None for _, score in rows):
        said += ["", "| compressed tokens | measured | GMACs |", "|---|---|---|"]
        for size, score in rows:
            told = "not known" if score is None else f"{score[0]} {100 * score[1]:.2f} %"
            gmacs = count_macs(model, compressed_size=size) / 1e9
            said.append(f"| {size_name(size) if size else '-'} | {told} | {gmacs:.3f} |")
    return "\n".join(said)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit export",
        usage="lookupvit export CHECKPOINT --format {onnx,torch-export,folder} [options]",
        description="Write a model for other runtimes; the batch is dynamic, the image size with --dynamic_size.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".ckpt of lookupvit fit, or folder of save_pretrained")
    parser.add_argument(
        "--format",
        choices=(*FORMATS, FOLDER),
        default="onnx",
        help="onnx (.onnx), torch-export (.pt2) or folder (safetensors, config, model card, image processor)",
    )
    parser.add_argument("--half", action="store_true", help="with --format folder: weights in float16, half as large")
    parser.add_argument(
        "--note", metavar="TEXT", help="with --format folder: a paragraph for the card, on the training"
    )
    parser.add_argument("--output", metavar="FILE", help="what to write; beside the checkpoint by default")
    parser.add_argument("--compressed_size", type=as_size, nargs="+", metavar="HxW", help="the model's own by default")
    parser.add_argument("--separate", action="store_true", help="a file for each size, not one with a choice in it")
    parser.add_argument("--img_size", type=as_pixels, metavar="PX", help="224 or 224x320; the model's own by default")
    text = "a segmenter that takes images of any size that the patch divides"
    parser.add_argument("--dynamic_size", action="store_true", help=text)
    parser.add_argument("--head", choices=HEADS, help="one head alone; the model's own by default")
    parser.add_argument("--preprocessing", action="store_true", help="fused: uint8 (B, Y, X, 3) in, probabilities out")
    parser.add_argument("--probabilities", choices=PROBABILITIES, help="with --preprocessing; the checkpoint's loss")
    parser.add_argument("--mean", type=float, nargs=3, metavar="M", help="mean of each channel, for pixels in 0..1")
    parser.add_argument("--std", type=float, nargs=3, metavar="S", help="standard deviation of each channel")
    parser.add_argument(
        "--attention",
        choices=("auto", "plain", "absorbed"),
        default="auto",
        help="order of the cross-attention's products (auto)",
    )
    return parser
