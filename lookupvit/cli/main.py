"""The command `lookupvit`: lists the commands, runs one, and turns a user's mistake into one line.

A command's file is imported when the command runs, so that `lookupvit --help` answers at once.
"""

import contextlib
import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module

EXIT_INTERRUPTED = 130  # as a shell has it: 128 + SIGINT

# The Trainer's commands get their own name before the arguments.
TRAINER_COMMANDS = {
    "fit": ("fit.run", "train a model"),
    "validate": ("fit.run", "score a checkpoint on the validation data"),
    "test": ("fit.run", "score a checkpoint on the test data"),
    "predict": ("fit.run", "name the classes of an image, a folder or a glob, or caption or segment them"),
}
# By name: the function in lookupvit.cli that runs it, and its line of help.
COMMANDS = {
    **TRAINER_COMMANDS,
    "compare": ("compare.compare", "train and test several configurations: one table and the curves"),
    "sweep": ("sweep.sweep.sweep", "accuracy against cost at many compressed sizes, of checkpoints or trained first"),
    "robustness": ("robustness.robustness", "checkpoints on corrupted and shifted images, in one pass; resumable"),
    "attend": ("attend.attend", "where a model looks: gather maps, roll-out, entropy and diversity"),
    "app": ("app.app", "a page to drop pictures on: answer, cost and gather maps at every compressed size"),
    "ablate": ("ablate.ablate", "a baseline and its variants, several seeds each; resumable"),
    "cost": ("cost.cost", "multiply-adds, parameters and memory of a model; the largest size within a budget"),
    "export": ("export.export", "a trained model as ONNX, as a torch.export program or as a folder for the Hub"),
    "knn": ("knn.knn", "accuracy of nearest neighbours on a checkpoint's frozen features"),
    "check-data": ("check_data.check_data", "decode every image and video ahead of time, list the bad ones"),
    "make-shards": ("make_shards.make_shards", "write a folder of images as WebDataset shards"),
    "train-tokenizer": ("train_tokenizer.train_tokenizer_command", "train a SentencePiece model on captions"),
    "bench": ("bench.bench_main", "speed and memory on this machine, beside timm's ViT and ToMe"),
}

HELP = f"""\
usage: lookupvit COMMAND [--config FILE]... [--OPTION VALUE]...

commands:
{"".join(f"  {name:<16} {text}{chr(10)}" for name, (_, text) in COMMANDS.items())}
Every field of every YAML file can be set from the command line. Later options win over earlier ones.

  lookupvit fit --config configs/demo.yaml
  lookupvit fit --config configs/demo.yaml --model.lr 5e-4 --trainer.max_epochs 3
  lookupvit test --config configs/demo.yaml --ckpt_path best
  lookupvit predict --config configs/demo.yaml --ckpt_path best --data.predict_path 'photos/*.jpg'

more:
  lookupvit COMMAND --help                        options of a command (fit --help_all, fit --help trainer: more)
  lookupvit fit --model.help ClassificationTask   options of a model, likewise --data.help
  lookupvit fit --config X.yaml --print_config    the whole configuration, resolved
  --debug (or LOOKUPVIT_DEBUG=1)                  a traceback instead of one line
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command, given by `argv` or else by the arguments of the process.

    Returns:
        The exit code: 0; 2 after a user's mistake, which is told in one line on stderr; 1 where `check-data` found bad
        files. Any other exception is a bug and passes through.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("LOOKUPVIT_DEBUG", "0") not in ("", "0")
    argv = [arg for arg in argv if arg != "--debug"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(version("lookupvit"))
        return 0
    if argv[0] not in COMMANDS:
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(COMMANDS)}"
        return _fail("", f"unknown command {argv[0]!r}: {hint}")
    return answer(argv[0], lambda: _run(argv), debug)


def answer(command: str, call: Callable[[], int], debug: bool) -> int:
    """Calls a command, and turns a user's mistake into one line.

    Args:
        command: Its name, for that line.
        call: What to call; returns an exit code.
        debug: Whether errors pass through as they are.

    Returns:
        The exit code.
    """
    with _quick_interrupt():  # seconds of imports, whose tracebacks help nobody
        from lookupvit.cli.common.errors import exit_code_of, interrupted, is_users, one_line

    try:
        return call()
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail(command, "interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if interrupted(error) and not debug:  # a library's import made another error of it
            return _fail(command, "interrupted", EXIT_INTERRUPTED)
        if (code := exit_code_of(error)) is not None:  # no mistake: a signal asked for it
            return code
        if debug or not is_users(error):
            raise
        return _fail(command, one_line(error))


def _run(argv: list[str]) -> int:
    module, _, function = COMMANDS[argv[0]][0].rpartition(".")
    command = getattr(import_module(f"lookupvit.cli.{module}"), function)
    result = command(argv if argv[0] in TRAINER_COMMANDS else argv[1:])
    return result if isinstance(result, int) else 0


def _fail(command: str, message: str, code: int = 2) -> int:
    print(f"lookupvit {command}: error: {message}".replace(" :", ":"), file=sys.stderr)
    return code


@contextlib.contextmanager
def _quick_interrupt() -> Iterator[None]:
    """Ctrl-C ends the process at once, with one line."""

    def leave(number: int, frame: object) -> None:
        os.write(2, b"lookupvit: error: interrupted\n")
        os._exit(EXIT_INTERRUPTED)

    main_thread = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, leave) if main_thread else None
    try:
        yield
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, previous)
