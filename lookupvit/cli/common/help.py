"""`--help` of the Trainer's commands: short by default, by section, or whole with `--help_all`."""

import textwrap
from typing import Any

from jsonargparse import ArgumentParser

from lookupvit.cli.common.stored import CLASSES

SECTIONS = ("trainer", "checkpoint", "model", "data")
_WIDTH = 110
_COLUMN = 34  # where the texts begin

# What most runs use. `tests/cli/test_help.py` holds every name against the parser and the classes.
SHORT = {
    "the run": {
        "config": "a YAML file of options; several, of which later ones win",
        "name": "name of the experiment: the run goes to OUTPUT_DIR/NAME/version_0, 1, ...",
        "output_dir": "folder of all experiments (outputs)",
        "ckpt_path": "a checkpoint, or last, or best: fit goes on from it, the other commands evaluate it",
        "seed_everything": "the seed of weights, order and draws (0)",
        "save_every_n_steps": "write last.ckpt every n steps, too",
        "print_config": "print the whole configuration, and do nothing",
    },
    "the model (--model.help CLASS lists all)": {
        "model": f"the task: {', '.join(CLASSES['model'])}",
        "model.name": "the network, such as lookupvit_small_patch16_224 or vit_small_patch16_224",
        "model.compressed_size": "compressed grid, such as [5,5]",
        "model.compressed_sizes": "train one model for several of them, such as [[3,3],[5,5],[7,7]]",
        "model.args": "arguments of the network, such as {depth: 6}",
        "model.lr": "highest learning rate, used as given (0.001)",
        "model.weight_decay": "of matrices alone (0.05)",
        "model.warmup_epochs": "epochs of linear warm-up (0)",
        "model.init_from": "first weights: a checkpoint, a folder, or the name of a timm ViT",
        "model.freeze": "lower layers that do not learn, or backbone for a linear probe",
        "model.ema_decay": "decay of the moving average of the weights, such as 0.9999",
        "model.compile": "run through torch.compile",
    },
    "the data (--data.help CLASS lists all)": {
        "data": f"the DataModule: {', '.join(CLASSES['data'])}",
        "data.root": "the folder of the data",
        "data.img_size": "pixels, one number or [height,width]; the model takes it from here",
        "data.batch_size": "samples per device and step",
        "data.num_workers": "loader processes per device; 0 loads in this one",
        "data.recipe": "augmentation of images",
        "data.predict_path": "of predict: a file, a folder or a glob",
    },
    "the Trainer (--help trainer lists all)": {
        "trainer.max_epochs": "epochs of the training",
        "trainer.accelerator": "cpu, gpu or auto",
        "trainer.devices": "how many, a list of them, or auto",
        "trainer.strategy": "ddp, fsdp, ...: see configs/base",
        "trainer.precision": "32-true, bf16-mixed, 16-mixed, ...",
        "trainer.accumulate_grad_batches": "batches for each step of the optimiser",
        "trainer.gradient_clip_val": "largest norm of the gradient",
        "trainer.check_val_every_n_epoch": "how often to validate",
        "trainer.logger": "tensorboard (the default), csv, wandb, mlflow, a list of these, or false",
        "trainer.limit_train_batches": "batches of an epoch, for a quick look",
    },
    "checkpoints (--help checkpoint lists all)": {
        "checkpoint.monitor": "the metric that the best are chosen by",
        "checkpoint.mode": "whether max or min is best",
        "checkpoint.save_top_k": "how many of the best are kept",
    },
}


def asked(args: list[str]) -> str | None:
    """The section that arguments ask for help on, "" for the short help; None if they do not ask.

    Args:
        args: After the command's name.
    """
    for place, arg in enumerate(args):
        name, equals, value = arg.partition("=")
        if name in ("-h", "--help"):
            following = value if equals else next(iter(args[place + 1 :]), "")
            return following.lstrip("-") if equals or following in SECTIONS else ""
        if arg in ("--trainer.help", "--checkpoint.help"):
            return arg.removeprefix("--").removesuffix(".help")
    return None


def text_of(command: str, section: str, parser: ArgumentParser) -> str:
    """The help of a command.

    Args:
        command: Its name.
        section: One of `SECTIONS`, or "" for the short help.
        parser: The command's.

    Raises:
        ValueError: For another section.
    """
    if section in CLASSES:
        lines = [f"lookupvit {command} --{section} CLASS: options of each with --{section}.help CLASS", ""]
        return "\n".join(lines + [_row(name, _first_line(kind)) for name, kind in CLASSES[section].items()]) + "\n"
    if section:
        if section not in SECTIONS:
            raise ValueError(f"--help {section} is no section: choose one of {', '.join(SECTIONS)}, or --help_all")
        actions = [
            action
            for action in parser._actions
            if action.dest.startswith(f"{section}.") and not action.dest.endswith(".help")
        ]
        rows = [_row(f"--{one.dest}", f"{one.help} ({parser.get_default(one.dest)})") for one in actions]
        return "\n".join([f"lookupvit {command}: options of --{section}", "", *rows]) + "\n"
    lines = [f"usage: lookupvit {command} [--config FILE]... [--OPTION VALUE]..."]
    known = {action.dest for action in parser._actions}
    for title, options in SHORT.items():
        shown = {key: text for key, text in options.items() if key.startswith(("model", "data")) or key in known}
        if shown:
            lines += ["", f"{title}:", *(_row(f"--{name}", text) for name, text in shown.items())]
    lines += ["", f"--help_all shows every option; --help {'|'.join(SECTIONS)} those of one section."]
    return "\n".join(lines) + "\n"


def _row(name: str, text: str) -> str:
    first = f"  {name:<{_COLUMN - 4}}  "
    return textwrap.fill(" ".join(text.split()), _WIDTH, initial_indent=first, subsequent_indent=" " * _COLUMN)


def _first_line(kind: Any) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]
