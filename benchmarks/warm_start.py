"""Warm start and distillation on CIFAR-10: python benchmarks/warm_start.py --data.root DIR [--epochs 20].

Trains, one after the other and each with the recipe of configs/experiments:

    teacher     a ViT, EPOCHS epochs from scratch
    scratch     a LookupViT, a tenth of the epochs from scratch
    warm        the same, from the teacher's weights
    distilled   from the teacher's weights and with its logits and features, half of the epochs

It tests each of them and writes warm_start.md and warm_start.json. Finished runs are not repeated. Any other option
goes to every fit and test (--trainer.limit_train_batches 20 for a try-out). --seeds 0 1 makes all runs for each seed.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupvit.analysis.cost import count_macs
from lookupvit.bench.report import Report, environment
from lookupvit.cli.common.arguments import OneLineParser
from lookupvit.cli.common.errors import USER_ERRORS, one_line
from lookupvit.cli.fit import run

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "experiments"


def runs(teacher: Path, epochs: int, size: str, options: list[str]) -> dict[str, tuple[str, int, list[str]]]:
    """Configuration, epochs and options of `fit` by name, in the order in which they need each other."""
    short = max(1, round(epochs / 10))
    lookup = ["--model.compressed_size", size]
    start = [*lookup, "--model.init_from", str(teacher), *options]
    taught = ["--model.teacher", str(teacher), "--model.teacher_weight", "0.9", "--model.teacher_feature_weight", "1"]
    return {
        "teacher": ("cifar10_vit.yaml", epochs, []),
        "scratch": ("cifar10_lookupvit_5x5.yaml", short, lookup),
        "warm": ("cifar10_lookupvit_5x5.yaml", short, start),
        "distilled": ("cifar10_lookupvit_5x5.yaml", max(1, epochs // 2), [*start, *taught]),
    }


def main(argv: list[str]) -> None:
    """All runs of all seeds; the table is written anew after each."""
    parser = OneLineParser(prog="benchmarks/warm_start.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=20, help="epochs of the teacher")
    parser.add_argument("--size", default="[4,4]", help="compressed size; 4x4 of 8x8 is about half of the ViT's work")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--warm_lr", default="1.0e-3", help="learning rate of the runs that start from the teacher")
    parser.add_argument("--output", default="outputs/warm_start", help="folder of runs and tables")
    args, shared = parser.parse_known_args(argv)
    rows = []
    for seed in args.seeds:
        folder = Path(args.output) / f"seed{seed}"
        teacher = folder / "teacher.ckpt"
        plan = runs(teacher, args.epochs, args.size, ["--model.lr", args.warm_lr])
        for name, (config, epochs, options) in plan.items():
            rows.append(one(name, CONFIGS / config, epochs, seed, folder, [*options, *shared]))
            report(rows, args.output, argv)


def one(name: str, config: Path, epochs: int, seed: int, folder: Path, options: list[str]) -> dict:
    """Trains and tests one model, unless that is done."""
    done, final = folder / f"{name}.json", folder / f"{name}.ckpt"
    settings = [config.name, epochs, options]
    if done.is_file():
        row = json.loads(done.read_text())
        if row.pop("settings") != settings:
            raise ValueError(f"{done} is of other settings: give the same again, or another --output")
        return row
    names = ["--output_dir", str(folder), "--name", name]
    train = ["--trainer.max_epochs", str(epochs), "--model.warmup_epochs", str(min(1.0, epochs / 4))]
    fit = run(["fit", "--config", str(config), "--seed_everything", str(seed), *names, *train, *options])
    fit.trainer.save_checkpoint(final)
    free = [f"--{key}" for key in ("model.init_from", "model.teacher")]
    kept = [arg for i, arg in enumerate(options) if arg not in free and (i == 0 or options[i - 1] not in free)]
    test = run(["test", "--config", str(config), "--ckpt_path", str(final), *names, *kept])
    row = {
        "run": name,
        "seed": seed,
        "epochs": epochs,
        "GMACs": round(count_macs(test.model.model) / 1e9, 4),
        "top-1": round(100 * float(test.trainer.callback_metrics["test/top1"]), 2),
        "steps": fit.trainer.global_step,
    }
    done.write_text(json.dumps({**row, "settings": settings}, indent=1) + "\n")
    return row


def report(rows: list[dict], output: str, argv: list[str]) -> None:
    """Prints and writes the table."""
    table = Report("Warm start and distillation on CIFAR-10", rows, environment("cpu"))
    table.notes = [f"python benchmarks/warm_start.py {' '.join(argv)}"]
    table.show()
    table.save(output, "warm_start", picture=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except USER_ERRORS as error:
        sys.exit(f"warm_start: error: {one_line(error)}")
