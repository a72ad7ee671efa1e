"""`lookupvit knn`: accuracy of nearest neighbours on frozen features."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lookupvit.analysis.knn import knn_accuracy, pooled_features
from lookupvit.checkpoints import find
from lookupvit.checkpoints.contents import contents_of
from lookupvit.cli.common.arguments import OneLineParser, as_size, check_data_options
from lookupvit.cli.common.loaded import data_config, data_module, limited
from lookupvit.grid import size_name
from lookupvit.interop.load_model import load_model
from lookupvit.model.encoder import TOKENS
from lookupvit.tasks.belonging import say_untrained


def knn(argv: list[str]) -> None:
    """Classifies each image of a split by its nearest training images, at one or several compressed sizes.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, in one line.
    """
    args, passed = _parser().parse_known_args(argv)
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit} leaves no images: give 1 or more")
    path = Path(args.checkpoint)
    contents = contents_of(find.load(path), path)
    data = data_module(data_config(contents, check_data_options("knn", passed)))
    model = load_model(path, img_size=data.img_size).to(args.device)
    if not hasattr(data, "bank_dataloader") or hasattr(model, "num_frames"):
        raise ValueError(f"knn is of image classifiers: {type(data).__name__} and {type(model).__name__} are not")
    if model.compressed_size is None and args.compressed_size:
        raise ValueError("a plain ViT has no compressed tokens: leave --compressed_size out")
    say_untrained(contents, args.compressed_size or [model.compressed_size])
    data.setup("fit")
    data.setup("validate" if args.split == "val" else "test")
    loaders = [data.bank_dataloader(), data.val_dataloader() if args.split == "val" else data.test_dataloader()]
    loaders = [limited(loader, args.limit) for loader in loaders]
    table = Table(title=f"{args.split} top-1 of {path.name}, {len(loaders[0].dataset)} training images", min_width=60)
    for column in ("compressed", *(f"k={k}" for k in args.k)):
        table.add_column(column)
    for size in args.compressed_size or [model.compressed_size]:
        bank, queries = (pooled_features(model, loader, size, args.tokens) for loader in loaders)
        accuracies = knn_accuracy(bank, queries, args.k, args.temperature)
        table.add_row(size_name(size) if size else "-", *(f"{100 * accuracies[k]:.2f} %" for k in args.k))
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit knn",
        usage="lookupvit knn CHECKPOINT [options] [--data.root DIR ...]",
        description="Top-1 of a vote among the nearest training images, by cosine between pooled, frozen features.",
        epilog="--data.* options change the data that the checkpoint was trained on.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=".ckpt of lookupvit fit, or folder of save_pretrained")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20], help="numbers of neighbours (10 20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="temperature of the votes' weights (0.07)")
    parser.add_argument("--compressed_size", type=as_size, nargs="+", metavar="HxW", help="the model's own by default")
    parser.add_argument("--tokens", choices=TOKENS, default="compressed", help="which tokens are pooled (compressed)")
    parser.add_argument("--split", choices=("test", "val"), default="val", help="which images are classified (val)")
    parser.add_argument("--limit", type=int, metavar="N", help="use N images of each split, evenly spread")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    return parser
