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
from lookupvit.cli.common.arguments import OneLineParser, as_count
from lookupvit.cli.common.next_steps import next_steps
from lookupvit.cli.common.tables import new_table
from lookupvit.cli.compare_pictures import Seen, draw_side_by_side, look
from lookupvit.cli.fit import run
from lookupvit.cli.launch.options import Launch
from lookupvit.cli.runs import Planned, Trained, train
from lookupvit.cli.settings import common_output, here, measure_of, resolve
from lookupvit.grid import size_name
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.segmenter import Segmenter
from lookupvit.tasks import CaptioningTask
from lookupvit.writing import write_text

_BATCH = 64  # images of one call when throughput is timed, where they are classified
_DENSE_BATCH = 4  # where every pixel is
_SCORES = {"ap50": "AP50", "mask_ap": "mask AP", "mask_ap50": "mask AP50"}  # further ones, and how they are written
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
        description="Train and test several configurations side by side; writes compare.json, compare.png and a "
        "picture: for classifiers and captioners compare_answers.png, for segmenters and detectors "
        "compare_found_miou.png or compare_found_ap.png, what they find beside the truth.",
        epilog="Any other option (--trainer.max_epochs 2, --data.root DIR) is handed to the fit and test of each.",
    )
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="configuration files, one per model")
    text = "folder of the runs and of the comparison; by default the configurations' own, outputs"
    parser.add_output_dir(text=text)
    parser.add_argument("--title", default="compare", help="name of the JSON and PNG written into the output folder")
    text = "trainings at once, a process each, without the ones that are finished already (1: all of them, in turn)"
    parser.add_argument("--jobs", type=as_count, default=1, metavar="N", help=text)
    args, shared = parser.parse_known_args(argv)
    console = Console()
    settings = {file: resolve(["--config", file, *shared]) for file in args.configs}
    names = _names(settings)
    measures = {file: measure_of(file, found) for file, found in settings.items()}
    out = common_output(settings) if args.output is None else Path(args.output)
    trained: dict[str, Trained] = {}
    if args.jobs > 1:
        planned = [Planned(names[file], ["--config", file, *shared]) for file in args.configs]
        trained = dict(zip(args.configs, train(planned, out, console, launch=Launch(args.jobs)), strict=True))
    shared += here(out)

    rows, models, answers = [], {}, {}
    curves: dict[str, dict[str, Path]] = {}
    seen: dict[str, dict[str, Seen]] = {}
    shown = None
    for config, measure in measures.items():
        one = trained.get(config) or _fitted(config, names[config], shared, console)
        test = run(["test", "--config", config, "--ckpt_path", str(one.checkpoint), *shared])
        task, model, data = test.model, test.model.model.eval(), test.datamodule
        curves.setdefault(measure, {})[one.name] = one.checkpoint.parents[1]
        models[one.name] = (model, task)
        if can_answer(task):
            shown = samples_of(data, _SHOWN) if shown is None else shown
            answers[one.name] = answers_to(shown, task.eval(), data)
        if isinstance(model, Segmenter | Detector):
            seen.setdefault(measure, {})[one.name] = look(task, data)
        logged = test.trainer.callback_metrics
        scores = {name: logged[f"test/{name}"] for name in (measure, *_SCORES) if f"test/{name}" in logged}
        rows.append(
            {
                "run": one.name,
                "model": task.hparams.name,
                "compressed_size": model.compressed_size,
                "parameters": count_parameters(model),
                "gmacs": count_macs(model) / 1e9,
                **{name: 100 * float(value) for name, value in scores.items()},
                "steps": one.steps,
                "fit_seconds": one.seconds,
                "checkpoint": str(one.checkpoint),
            }
        )
    for row, rate in zip(rows, _images_per_second(models), strict=True):
        row["images_per_second"] = rate

    write_text(out / f"{args.title}.json", json.dumps(rows, indent=2) + "\n")
    files = []
    for measure, folders in curves.items():
        name = args.title if len(curves) == 1 else f"{args.title}_{measure}"
        files.append(plot_curves(folders, out / f"{name}.png", measure, MEASURES[measure]))
    for measure, runs in seen.items():
        if picture := draw_side_by_side(runs, out / f"{args.title}_found_{measure}.png"):
            files.append(picture)
        else:
            console.print(f"no picture of what {', '.join(runs)} find: they were tested on different images")
    if len(answers) == len(rows):
        picture = out / f"{args.title}_answers.png"
        files.append(plot_answers(*pictures_and_truths(shown, data), answers, picture))
    console.print(_table(rows))
    console.print(f"figures in {out / args.title}.json, curves and pictures in", *files, soft_wrap=True)
    commands = next_steps([row["checkpoint"] for row in rows], rows[0]["compressed_size"], task, data)
    if commands:
        lines = ["", "to try next:", *(f"  {line}" for line in commands)]
        console.print("\n".join(lines), soft_wrap=True, markup=False)


def _fitted(config: str, name: str, shared: list[str], console: Console) -> Trained:
    """Trains in this process, from the beginning."""
    console.rule(f"[bold]{config}")
    start = time.perf_counter()
    trainer = run(["fit", "--config", config, *shared]).trainer
    seconds = time.perf_counter() - start
    checkpoint = next(c.last_good for c in trainer.callbacks if isinstance(c, LastCheckpoint))
    return Trained(name, Path(checkpoint), trainer.current_epoch, trainer.global_step, seconds)


def _names(settings: dict[str, dict]) -> dict[str, str]:
    """The name of each run, by configuration file.

    Args:
        settings: Results of `resolve` by configuration file.

    Raises:
        ValueError: If two runs would share a folder and a row.
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
    return {file: name for name, file in files.items()}


def _images_per_second(models: dict[str, tuple]) -> list[float]:
    """Inference throughput, in images or clips, for captioners with their captions.

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


def _table(rows: list[dict]) -> Table:
    scores = [name for name in (*MEASURES, *_SCORES) if any(name in row for row in rows)]
    headings = [{**MEASURES, **_SCORES}[name] for name in scores]
    several = sum(any(name in row for row in rows) for name in MEASURES) > 1
    title = "same data, same recipe, same number of steps" + (" within a task" if several else "")
    # so many scores leave no room for the rest in a terminal of 80 columns; the JSON has all of it
    left_out = {"model", "params", "images/s"} if len(scores) > 2 else set()
    columns = ["run", "model", "tokens", "params", "GMACs", *headings, "images/s", "fit"]
    table = new_table(title, [name for name in columns if name not in left_out], text=("run", "model"))
    for row in rows:
        size, rate, seconds = row["compressed_size"], row["images_per_second"], row["fit_seconds"]
        cells = [
            row["run"],
            row["model"],
            size_name(size) if size else "-",
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gmacs']:.4f}",
            *(f"{row[name]:.2f}{'' if left_out else ' %'}" if name in row else "-" for name in scores),
            f"{rate:.{0 if rate >= 10 else 2}f}",
            "-" if seconds is None else f"{seconds:.0f} s",
        ]
        table.add_row(*(cell for name, cell in zip(columns, cells, strict=True) if name not in left_out))
    return table
