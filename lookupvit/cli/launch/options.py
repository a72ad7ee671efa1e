"""`--jobs`, `--launcher` and `--slurm`, for the commands that train many models."""

import argparse
from dataclasses import dataclass, field
from typing import Any

import yaml

from lookupvit.cli.common.arguments import as_count

LAUNCHERS = ("slurm", "local")


@dataclass(frozen=True)
class Launch:
    """Where trainings run.

    Attributes:
        jobs: How many at once; on a cluster None for all.
        launcher: "slurm"; "local" for submitit's own processes on this machine; None for this command's.
        parameters: Of submitit's `AutoExecutor`.
    """

    jobs: int | None = 1
    launcher: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


HERE = Launch()  # one after the other, in this process


def add_launch_options(parser: Any) -> None:
    """Adds the options to a parser or to a group of one."""
    text = "trainings at once on this machine, a process each (1: in this process); with --launcher, jobs at once (all)"
    parser.add_argument("--jobs", type=as_count, metavar="N", help=text)
    text = "slurm: one array job through submitit, resumable; local: the same on this machine, to try it out"
    parser.add_argument("--launcher", choices=LAUNCHERS, help=text)
    text = "submitit's parameters, such as timeout_min=600 gpus_per_node=1 slurm_partition=gpu slurm_mem=32G"
    parser.add_argument("--slurm", nargs="+", metavar="NAME=VALUE", help=text)


def launch_of(args: argparse.Namespace) -> Launch:
    """What the options say.

    Raises:
        ValueError: If they do not go together, or a parameter is not of the form NAME=VALUE.
    """
    if args.launcher is None:
        if args.slurm:
            raise ValueError("--slurm gives parameters of a cluster's jobs: it needs --launcher slurm")
        return Launch(args.jobs or 1)
    if args.launcher == "local" and args.jobs is not None:
        raise ValueError("--launcher local runs every job at once: leave --jobs out, or --launcher")
    parameters = {}
    for text in args.slurm or []:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ValueError(f"--slurm {text} is not of the form NAME=VALUE, such as timeout_min=600")
        parameters[name] = yaml.safe_load(value)
    return Launch(args.jobs, args.launcher, parameters)
