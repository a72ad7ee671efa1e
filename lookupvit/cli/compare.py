"""`lookupvit compare`: trains and tests several configurations with one recipe, and sets them side by side."""

import json
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from lookupvit.analysis.answers import plot_answers
from lookupvit.analysis.cost import count_macs, count_parameters
from lookupvit.analysis.plots import plot_curves
from lookupvit.bench.timing import interleave
from lookupvit.callbacks import LastCheckpoint
from lookupvit.checkpoints.contents import MEASURES
from lookupvit.cli.common.answering import answers_to, can_answer, pictures_and_truths, samples_of
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.cli.common.next_steps import next_steps
from lookupvit.cli.common.tables import new_table
from lookupvit.cli.fit import run
from lookupvit.cli.settings import common_measure, common_output, here, resolve
from lookupvit.grid import size_name
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.tasks import CaptioningTask
from lookupvit.writing import write_text

_BATCH = 64  # images of one call when throughput is timed, where they are classified
_DENSE_BATCH = 4  # where every pixel is
_SHOWN = 8  # samples in the picture of answers


def compare(argv: list[str]) -> None:
    """Trains each configuration (`fit`), tests its last checkpoint (`test`), and prints one table.

    Beside the table go the curves and, of classifiers and captioners, a picture of what each answers to test samples.

    Args:
        argv: Configuration files, then options of this command and of `fit`; the latter are handed to every run.

    Raises:
        ValueError: For arguments that do not fit, in one line.
    """
    parser = OneLineParser(
        prog="lookupvit compare",
        description="Train and test several configurations side by side; writes compare.json, compare.png and, of "
        "classifiers and captioners, compare_answers.png.",
        epilog="Any other option (--trainer.max_epochs 2, --data.root DIR) is handed to the fit and test of each.",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configuration files, one per model")
    text = "folder of the runs and of the comparison; by default the configurations' own, outputs"
    parser.add_output_dir(text=text)
    parser.add_argument("--title", default="compare", help="name of the JSON and PNG written into the output folder")
    args, shared = parser.parse_known_args(argv)
    console = Console()
    settings = {file: resolve(["--config", file, *shared]) for file in args.configs}
    _refuse_equal_names(settings)
    measure = common_measure(settings)
    out = common_output(settings) if args.output is None else Path(args.output)
    shared += here(out)

    rows, curves, models, shown, answers = [], {}, {}, None, {}
    for config in args.configs:
        console.rule(f"[bold]{config}")
        start = time.perf_counter()
        fit = run(["fit", "--config", config, *shared])
        seconds = time.perf_counter() - start
        folder = Path(fit.trainer.log_dir)
        checkpoint = next(c.last_good for c in fit.trainer.callbacks if isinstance(c, LastCheckpoint))
        test = run(["test", "--config", config, "--ckpt_path", str(checkpoint), *shared])
        model, task = test.model.model.eval(), test.model
        label = fit.config["fit"].get("name") or folder.parent.name
        curves[label] = folder
        models[label] = (model, task)
        if can_answer(task):
            shown = samples_of(test.datamodule, _SHOWN) if shown is None else shown
            answers[label] = answers_to(shown, task.eval(), test.datamodule)
        rows.append(
            {
                "run": label,
                "model": task.hparams.name,
                "compressed_size": model.compressed_size,
                "parameters": count_parameters(model),
                "gmacs": count_macs(model) / 1e9,
                measure: 100 * float(test.trainer.callback_metrics[f"test/{measure}"]),
                "steps": fit.trainer.global_step,
                "fit_seconds": seconds,
                "checkpoint": str(checkpoint),
            }
        )
    for row, rate in zip(rows, _images_per_second(models), strict=True):
        row["images_per_second"] = rate

    write_text(out / f"{args.title}.json", json.dumps(rows, indent=2) + "\n")
    picture = plot_curves(curves, out / f"{args.title}.png", measure, MEASURES[measure])
    console.print(_table(rows, measure))
    said = f"figures in {out / args.title}.json, curves in {picture}"
    if len(answers) == len(rows):
        drawn = plot_answers(*pictures_and_truths(shown, test.datamodule), answers, out / f"{args.title}_answers.png")
        said += f", what they answer in {drawn}"
    console.print(said, soft_wrap=True)
    commands = next_steps([row["checkpoint"] for row in rows], rows[0]["compressed_size"], task, test.datamodule)
    if commands:
        console.print(
            "\n".join(["", "to try next:", *(f"  {line}" for line in commands)]), soft_wrap=True, markup=False
        )


def _refuse_equal_names(settings: dict[str, dict]) -> None:
    """Raises if two runs would share a folder and a row.

    Args:
        settings: Results of `resolve` by configuration file.
    """
    files: dict[str, str] = {}
    for file, found in settings.items():
        name = found.get("name") or found.get("model.name")
        if name in files:
            raise ValueError(
                f"{files[name]} and {file} are both named {name}: their runs would share a folder and a row; give each "
                "a name of its own"
            )
        files[name] = file


def _images_per_second(models: dict[str, tuple]) -> list[float]:
    """Images or clips per second, of captioners with their captions.

    The models are timed in turn, so that a busy machine slows them alike.
    """
    cases = {}
    batch = _DENSE_BATCH if any(isinstance(model, Segmenter | Detector) for model, _ in models.values()) else _BATCH
    for label, (model, task) in models.items():
        frames = (model.num_frames,) if hasattr(model, "num_frames") else ()
        inputs = torch.randn(batch, 3, *frames, *model.img_size)
        call = task.caption if isinstance(task, CaptioningTask) else model
        cases[label] = lambda call=call, inputs=inputs: call(inputs)
    with torch.inference_mode():
        timings = interleave(cases, next(iter(cases)), items=dict.fromkeys(cases, batch), label="images/s")
    return [timing.rate for timing in timings.values()]


def _table(rows: list[dict], measure: str) -> Table:
    columns = ("run", "model", "tokens", "params", "GMACs", MEASURES[measure], "images/s", "fit")
    table = new_table("same data, same recipe, same number of steps", columns, text=("run", "model"))
    for row in rows:
        size = row["compressed_size"]
        table.add_row(
            row["run"],
            row["model"],
            size_name(size) if size else "-",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gmacs']:.4f}",
            f"{row[measure]:.2f} %",
            f"{row['images_per_second']:.{0 if row['images_per_second'] >= 10 else 2}f}",
            f"{row['fit_seconds']:.0f} s",
        )
    return table
