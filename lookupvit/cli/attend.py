"""`lookupvit attend`: where a trained model looks, as pictures, a table and figures."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lookupvit import tasks
from lookupvit.analysis.attention_maps import Attention, attention_of, rollout, spread
from lookupvit.analysis.attention_plots import animate, plot_gather, plot_rollout, plot_spread
from lookupvit.cli.common.arguments import OneLineParser, as_count, as_size, check_data_options
from lookupvit.cli.common.loaded import checkpoint_of, data_config, data_module, labels_of, load_task
from lookupvit.grid import size_name
from lookupvit.tasks.belonging import say_untrained
from lookupvit.writing import check_writable, write_text

_EPILOG = """\
Writes gather_NAME.png (what each compressed token reads), rollout.png (which patches the heads' tokens came from; of
clips also rollout_NAME.gif), spread.png and attend.json (entropy and diversity per block). --data.* options change the
data that the checkpoint was trained on.
"""


def attend(argv: list[str]) -> None:
    """Draws the attention of checkpoints on images or clips; see `lookupvit attend --help`.

    Raises:
        ValueError, FileNotFoundError: For arguments that do not fit, in one line.
    """
    args, data_options = _parser().parse_known_args(argv)
    check_data_options("attend", data_options)
    console, folder = Console(), Path(args.output)
    check_writable(folder)
    paths = [checkpoint_of(name) for name in args.checkpoints]
    curves, columns, seen, figures = {}, {}, {}, []
    for path, label in zip(paths, labels_of(paths), strict=True):
        task, contents = load_task(path, "cpu")
        if not isinstance(task, tasks.ClassificationTask):
            raise ValueError(
                f"checkpoint {path} is of {type(task).__name__}: attend shows classifiers of images or clips"
            )
        say_untrained(contents, [args.size or task.model.compressed_size] if task.model.compressed_size else [])
        data = data_module(data_config(contents, _predict(args.path, data_options)), prepare=False)
        inputs, files = _inputs(data, args.count)
        pictures = _pixels(inputs, data)
        attention = _attention(task.model, inputs, args.size)
        shown = f"{label} {size_name(attention.compressed_size)}" if attention.compressed_size else label
        curves |= _curves(shown, attention)
        for head in ("compressed", "lookup") if attention.resize is not None else ("lookup",):
            maps = rollout(attention, head).unflatten(1, attention.grid_size)  # (B, N) -> (B, h, w)
            name = f"{shown}, {head} head" if attention.resize is not None else shown
            columns[name] = _by_input(maps, len(inputs), clips=inputs.ndim == 5)
        if seen and seen["files"] != files:
            raise ValueError(
                f"{path} reads other files than the checkpoint before it: give checkpoints of the same data"
            )
        if attention.resize is not None:
            figures += _gather_pictures(attention, pictures, files, args, shown, folder)
        seen = {"files": files, "pictures": pictures}
    figures += _rollout_pictures(seen["pictures"], columns, seen["files"], folder)
    figures.append(plot_spread(curves, folder / "spread.png"))
    figures.append(_write_json(curves, seen["files"], folder / "attend.json"))
    _print_table(curves, console)
    console.print("wrote " + ", ".join(map(str, figures)), soft_wrap=True, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit attend",
        usage="lookupvit attend CHECKPOINT... --path IMAGES [options]",
        description="Where trained models look: gather maps, attention roll-out, entropy and diversity by block.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoints or folders of runs; also ViT")
    parser.add_argument("--path", required=True, help="an image or a clip, a folder or a glob of them")
    parser.add_argument("--count", type=as_count, default=6, help="images at most, evenly spread over those found (6)")
    parser.add_argument("--size", type=as_size, metavar="HxW", help="compressed size; the model's own by default")
    parser.add_argument("--layer", type=int, default=-1, help="block of the gather pictures; -1 is the last")
    parser.add_argument(
        "--head", type=int, help="attention head of the gather pictures, from 0; the mean of all by default"
    )
    parser.add_output_dir("outputs/attend")
    return parser


def _predict(path: str, options: list[str]) -> list[str]:
    return [*options, "--data.predict_path", path, "--data.num_workers", "0"]


def _inputs(data: LightningDataModule, count: int) -> tuple[Tensor, list[str]]:
    """At most `count` images `(B, 3, Y, X)`, or clips `(B, 3, T, Y, X)` (the first view of each), and their files."""
    data.setup("predict")
    loader = data.predict_dataloader()
    dataset = loader.dataset
    chosen = [i * len(dataset) // min(count, len(dataset)) for i in range(min(count, len(dataset)))]
    inputs, files = loader.collate_fn([dataset[i] for i in chosen])
    if bad := [file for file in files if hasattr(file, "error")]:
        raise ValueError(f"{bad[0].error}: leave it out of --path (lookupvit check-data lists such files)")
    return (inputs[:, 0] if inputs.ndim == 6 else inputs), [str(file) for file in files]  # (B, V, ...) -> (B, ...)


def _pixels(inputs: Tensor, data: LightningDataModule) -> Tensor:
    """Normalised inputs back in [0, 1]."""
    shape = (1, -1, *[1] * (inputs.ndim - 2))
    return (inputs * torch.tensor(data.std).view(shape) + torch.tensor(data.mean).view(shape)).clamp(0, 1)


def _attention(model: nn.Module, inputs: Tensor, size: tuple[int, ...] | None) -> Attention:
    if size is not None and model.compressed_size is None:
        size = None  # a ViT beside a LookupViT
    return attention_of(model.eval(), inputs, size)


def _curves(label: str, attention: Attention) -> dict[str, list[tuple[float, float]]]:
    """(entropy, diversity) by block, means over the heads, of each kind of attention."""
    if attention.resize is None:
        kinds = {f"{label}, self-attention": [block.refine for block in attention.blocks]}
    else:
        kinds = {f"{label}, gather": [block.gather for block in attention.blocks]}
    return {
        name: [tuple(float(figure.mean()) for figure in spread(matrix)) for matrix in matrices]
        for name, matrices in kinds.items()
    }


def _by_input(maps: Tensor, inputs: int, clips: bool) -> list[Tensor]:
    """One map per input: `(h, w)` of an image, `(t, h, w)` of a clip (of a factorised model per time index)."""
    if clips and maps.ndim == 3:
        maps = maps.unflatten(0, (inputs, -1))  # (B t, h, w) -> (B, t, h, w)
    return list(maps)


def _gather_pictures(
    attention: Attention, pictures: Tensor, files: Sequence[str], args: argparse.Namespace, label: str, folder: Path
) -> list[Path]:
    """One picture per image: the maps of every compressed token, at one block."""
    if len(attention.grid_size) != 2 or pictures.ndim != 4:
        return []  # a clip's tokens look at several frames each: the roll-out shows those
    depth, heads = len(attention.blocks), attention.blocks[0].gather.shape[1]
    if not -depth <= args.layer < depth:
        raise ValueError(
            f"--layer {args.layer}: this model has {depth} blocks, 0 to {depth - 1}, or negative from the end"
        )
    if args.head is not None and not 0 <= args.head < heads:
        raise ValueError(f"--head {args.head}: this model has {heads} attention heads, 0 to {heads - 1}")
    gather = attention.blocks[args.layer].gather  # (B, H, M, N)
    maps = (gather.mean(dim=1) if args.head is None else gather[:, args.head]).unflatten(2, attention.grid_size)
    which = "mean of heads" if args.head is None else f"head {args.head}"
    title = f"{label}, block {range(depth)[args.layer] + 1} of {depth}, {which}"
    stem = label.replace("/", "_").replace(" ", "_")
    return [
        plot_gather(
            picture, of_image, attention.compressed_size, title, folder / f"gather_{stem}_{i}_{Path(files[i]).stem}.png"
        )
        for i, (picture, of_image) in enumerate(zip(pictures, maps, strict=True))
    ]


def _rollout_pictures(pictures: Tensor, columns: dict[str, list[Tensor]], files: list[str], folder: Path) -> list[Path]:
    if pictures.ndim == 4:
        return [plot_rollout(list(pictures), columns, folder / "rollout.png")]
    stems = {name: name.replace("/", "_").replace(" ", "_").replace(",", "") for name in columns}
    return [
        animate(clip, maps[i], folder / f"rollout_{stems[name]}_{i}_{Path(files[i]).stem}.gif")
        for name, maps in columns.items()
        for i, clip in enumerate(pictures)
    ]


def _write_json(curves: dict[str, list[tuple[float, float]]], files: list[str], path: Path) -> Path:
    layers = {name: [{"entropy": e, "diversity": d} for e, d in values] for name, values in curves.items()}
    return write_text(path, json.dumps({"files": files, "blocks": layers}, indent=1) + "\n")


def _print_table(curves: dict[str, list[tuple[float, float]]], console: Console) -> None:
    table = Table(title="entropy / diversity of the attention, means over images and heads, each 0 to 1")
    table.add_column("block", justify="right")
    for name in curves:
        table.add_column(name, justify="right")
    for i in range(max(map(len, curves.values()))):
        table.add_row(str(i + 1), *(f"{c[i][0]:.3f} / {c[i][1]:.3f}" if i < len(c) else "" for c in curves.values()))
    console.print(table)
