"""`lookupvit app`: a page on this machine that shows what a picture's answer costs, and what it is, at every size."""

import argparse
import os
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from datamodules.images.decode import decode_rgb
from datamodules.images.transforms import eval_transform, transform_options
from lookupvit import tasks
from lookupvit.analysis.cascade.cascade import Cascade
from lookupvit.analysis.cascade.file import check_belongs
from lookupvit.analysis.explorer import Answer, Explorer, plot_budgets
from lookupvit.bench.timing import interleave
from lookupvit.callbacks.pictures import denormalised
from lookupvit.checkpoints.fingerprint import fingerprint
from lookupvit.checkpoints.pixels import pixels_of
from lookupvit.cli.common.arguments import OneLineParser, as_count
from lookupvit.cli.common.loaded import checkpoint_of, labels_of, load_task
from lookupvit.grid import Size, check_compressed_size, grid_of, size_name
from lookupvit.tasks.belonging import say

_ROUNDS = 11  # timed calls of each model; the median counts
_SHOWN = 5  # classes of an answer
# Small pictures fill their frame.
_STYLE = "#picture img {width: 100%; height: 100%; object-fit: contain} .answer h2 {font-size: 1.6rem; padding: 0}"


class Exhibit:
    """A model of the page, with what it does to a picture first.

    Args:
        path: Checkpoint or exported folder.
        label: Its name on the page.

    Raises:
        ValueError, FileNotFoundError: If it is no classifier of images; in one line.
    """

    def __init__(self, path: Path, label: str):
        task, contents = load_task(path, "cpu")
        if not isinstance(task, tasks.ClassificationTask) or isinstance(task, tasks.VideoTask):
            raise ValueError(f"checkpoint {path} is of {type(task).__name__}: the app shows classifiers of images")
        self.path, self.contents, model = path, contents, task.model
        names = contents.class_names or [f"class {i}" for i in range(model.num_classes)]
        trained, sigmoid = contents.trained_sizes, task.hparams.get("loss") == "sigmoid"
        self.explorer = Explorer(model, label, names, trained, task.eval_head, sigmoid)
        self.pixels = pixels_of(contents)
        if self.pixels is None:
            raise ValueError(
                f"{path} does not say how its images were normalised: export it with --mean and --std, or give a "
                "checkpoint of lookupvit fit"
            )
        self.transform = eval_transform(model.img_size, transform_options("light", **self.pixels.as_dict()))

    def tensors(self, file: str) -> tuple[Tensor, Tensor]:
        """A picture `(3, Y, X)` as the model gets it, normalised, and in [0, 1]."""
        image = self.transform(decode_rgb(file))
        return image, denormalised(image, self.pixels.mean, self.pixels.std)


def exhibits(checkpoints: list[str], cascade: str | None = None) -> list[Exhibit]:
    """Loads the models of a page.

    Args:
        checkpoints: Checkpoints, folders of runs, or exported folders.
        cascade: A cascade's file, which goes to the model that it was made for.

    Raises:
        ValueError, FileNotFoundError: For one that cannot be shown, or a cascade of none of them; in one line.
    """
    paths = [checkpoint_of(name) for name in checkpoints]
    shown = [Exhibit(path, label) for path, label in zip(paths, labels_of(paths), strict=True)]
    if cascade is not None:
        chosen = Cascade.load(cascade)
        prints = [fingerprint(exhibit.explorer.model.state_dict()) for exhibit in shown]
        place = prints.index(chosen.model) if chosen.model in prints else 0
        model = shown[place].explorer.model
        if model.compressed_size is None:
            raise ValueError(f"cascade {cascade} was not made for {shown[place].path}, which has no compressed tokens")
        if line := check_belongs(chosen, cascade, prints[place], model.img_size):
            say(f"Warning: {line}")
        for size in chosen.sizes:
            check_compressed_size(size, grid_of(model.img_size, model.patch_size))
        shown[place].explorer.cascade = chosen
    return shown


def look(shown: list[Exhibit], file: str, side: int, block: int) -> list[Any]:
    """Everything that the page shows of a picture.

    Args:
        shown: The models.
        file: The picture.
        side: Longer side of the compressed grid; a model with a smaller grid takes its largest.
        block: Block whose gather maps are drawn, from 1; a model with fewer takes its last.

    Returns:
        For each model its likeliest classes by name, its lines in Markdown and its picture; then the picture of all
        budgets.
    """
    values, budgets, chosen = [], {}, [exhibit.explorer.size_at(side) for exhibit in shown]
    pictures = [exhibit.tensors(file) for exhibit in shown]
    times = _milliseconds(shown, [image for image, _ in pictures], chosen)
    for exhibit, (image, pixels), size, ms in zip(shown, pictures, chosen, times, strict=True):
        explorer = exhibit.explorer
        answer = explorer.answer(image, size)
        drawn = explorer.picture(image, pixels, size, min(block, explorer.model.depth) - 1)
        values += [dict(list(answer.scores.items())[:_SHOWN]), _lines(exhibit, answer, size, ms, image), drawn]
        sizes = sorted({*(explorer.trained_sizes or explorer.sizes), size}) if size else [None]
        budgets[explorer.label] = {own: explorer.answer(image, own) for own in sizes}
    return [*values, plot_budgets(budgets, chosen)]


def page(shown: list[Exhibit], gradio: ModuleType | None = None) -> Any:
    """The page as Gradio's `Blocks`; in a notebook, `page(exhibits([...])).launch(inline=True)` shows it.

    Raises:
        ValueError: If Gradio is not installed; in one line.
    """
    gr = gradio or _gradio()
    largest = max((len(exhibit.explorer.sizes) for exhibit in shown), default=0)
    own = [max(e.explorer.model.compressed_size) for e in shown if e.explorer.sizes]
    depth = max(exhibit.explorer.model.depth for exhibit in shown)

    def update(file: str | None, side: float, block: float) -> list[Any]:
        if file is None:
            return [None] * (3 * len(shown) + 1)
        try:
            return look(shown, file, int(side), int(block))
        except (ValueError, OSError) as error:  # a picture that cannot be read: told on the page
            raise gr.Error(str(error)) from error

    with gr.Blocks(title="lookupvit", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown("# lookupvit\nDrop a picture and slide the compressed size: the same weights, another budget.")
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                file = gr.Image(type="filepath", label="picture", height=260, elem_id="picture", sources=["upload"])
                side = gr.Slider(
                    1,
                    max(largest, 2),
                    value=own[0] if own else 1,
                    step=1,
                    label="compressed size (longer side)",
                    visible=bool(own),
                    elem_id="side",
                )
                block = gr.Slider(1, max(depth, 2), value=depth, step=1, label="block", visible=bool(own))
                budgets = gr.Image(buttons=[], show_label=False, interactive=False, elem_id="budgets")
            outputs: list[Any] = []
            for place, exhibit in enumerate(shown):
                with gr.Column(scale=1, min_width=280):
                    gr.Markdown(f"### {exhibit.explorer.label}")
                    lines = gr.Markdown(elem_id=f"lines{place}")
                    answer = gr.Label(show_label=False, elem_id=f"answer{place}", elem_classes="answer")
                    kind = "What each compressed token gathers" if exhibit.explorer.sizes else "Attention roll-out"
                    gr.Markdown(f"{kind}:")
                    maps = gr.Image(show_label=False, buttons=[], interactive=False, elem_id=f"map{place}")
                    outputs += [answer, lines, maps]
        inputs, results = [file, side, block], [*outputs, budgets]
        file.change(update, inputs, results, show_progress="hidden")
        for slider in (side, block):
            slider.release(update, inputs, results, show_progress="hidden")
    return blocks


def app(argv: list[str]) -> None:
    """Serves the page until it is interrupted; see `lookupvit app --help`.

    Raises:
        ValueError, OSError: For arguments that do not fit, or a port that is taken; in one line.
    """
    args = _parser().parse_args(argv)
    gradio = _gradio()
    blocks = page(exhibits(args.checkpoints, args.cascade), gradio)
    _, address, _ = blocks.launch(
        server_name=args.host,
        server_port=args.port,
        inbrowser=args.browser,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        css=_STYLE,
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    print(f"the page is at {address} (Ctrl-C ends it)", flush=True)
    blocks.block_thread()


def _milliseconds(shown: list[Exhibit], images: list[Tensor], sizes: list[Size | None]) -> list[float]:
    """Median milliseconds of each model's call, taken in turn, so that what else runs here slows all alike."""
    cases = {
        str(place): partial(exhibit.explorer.model, image[None], size, exhibit.explorer.head)
        for place, (exhibit, image, size) in enumerate(zip(shown, images, sizes, strict=True))
    }
    with torch.inference_mode():
        return [1000 * timing.median for timing in interleave(cases, "0", _ROUNDS).values()]


def _lines(exhibit: Exhibit, answer: Answer, size: Size | None, ms: float, image: Tensor) -> str:
    """Cost, training and the cascade's way in Markdown."""
    explorer = exhibit.explorer
    about = "plain ViT: no compressed tokens" if size is None else exhibit.contents.about(size)
    name = "" if size is None else f"**{size_name(size)}**, "
    lines = [f"{name}**{answer.gmacs:.3f} GMACs**, **{ms:.1f} ms** here for one image", about]
    if explorer.cascade is not None:
        stages, gmacs = explorer.cascade_way(image)
        steps = []
        for stage in stages:
            last = stage is stages[-1]
            sign = "" if stage.threshold is None else f" {'≥' if last else '<'} {stage.threshold:.2f}"
            steps.append(f"{size_name(stage.size)} {stage.name} {stage.confidence:.2f}{sign}")
        lines.append(f"cascade: {' → '.join(steps)}: **{stages[-1].name}** after {gmacs:.3f} GMACs")
    return "  \n".join(lines)


def _gradio() -> ModuleType:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # nothing leaves this machine
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the app needs Gradio, which is not installed: pip install 'lookupvit[app]'") from error
    return gradio


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="lookupvit app",
        usage="lookupvit app CHECKPOINT... [options]",
        description="Serve a page on this machine: drop a picture, slide the compressed size, see answer and cost.",
    )
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CHECKPOINT",
        help="checkpoints, folders of runs, exported folders; also ViT",
    )
    parser.add_argument("--cascade", metavar="FILE", help="a cascade of lookupvit sweep for one of the models")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=as_count, help="port (the first free one from 7860)")
    parser.add_argument("--browser", action="store_true", help="open the page in a browser")
    return parser
