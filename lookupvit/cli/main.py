"""The command ``lookupvit``: says what there is, runs it, and turns a user's mistake into one line.

Heavy imports happen only when a command runs, so that ``lookupvit --help`` answers at once.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

EXIT_INTERRUPTED = 130  # as a shell has it: 128 + SIGINT

HELP = """\
usage: lookupvit COMMAND [--config FILE]... [--OPTION VALUE]...

commands:
  fit        train a model
  validate   score a checkpoint on the validation data
  test       score a checkpoint on the test data
  predict    name the classes of an image, a folder or a glob, or caption them
  compare    train and test several configurations, one table and the curves
  sweep      accuracy against cost at many compressed sizes, of checkpoints or trained first
  attend     where a model looks: gather maps, roll-out, entropy and diversity
  ablate     a baseline and its variations, several seeds each; resumable
  cost       multiply-adds, parameters and memory of a model; the size that a budget pays for
  export     a trained model as ONNX, torch.export program or folder for the Hub
  knn        accuracy of nearest neighbours on a checkpoint's frozen features
  check-data decode every image and video ahead of time, list the bad ones
  make-shards  WebDataset shards of a tree of images
  train-tokenizer  train a SentencePiece model on captions
  bench      speed and memory on this machine, beside timm's ViT and ToMe

Every field of every YAML file can be set from the command line; what stands further right wins.

  lookupvit fit --config configs/demo.yaml
  lookupvit fit --config configs/demo.yaml --model.lr 5e-4 --trainer.max_epochs 3
  lookupvit test --config configs/demo.yaml --ckpt_path best
  lookupvit predict --config configs/demo.yaml --ckpt_path best --data.predict_path 'photos/*.jpg'

more:
  lookupvit COMMAND --help                        options of a command
  lookupvit fit --model.help ClassificationTask   options of a model, likewise --data.help
  lookupvit fit --config X.yaml --print_config    the whole configuration, resolved
  --debug (or LOOKUPVIT_DEBUG=1)                  a traceback instead of one line
"""


def _trainer_command(argv: list[str]) -> None:
    from lookupvit.cli.fit import run

    run(argv)


def _compare(argv: list[str]) -> None:
    from lookupvit.cli.compare import compare

    compare(argv)


def _sweep(argv: list[str]) -> None:
    from lookupvit.cli.sweep.sweep import sweep

    sweep(argv)


def _cost(argv: list[str]) -> None:
    from lookupvit.cli.cost import cost

    cost(argv)


def _ablate(argv: list[str]) -> None:
    from lookupvit.cli.ablate import ablate

    ablate(argv)


def _attend(argv: list[str]) -> None:
    from lookupvit.cli.attend import attend

    attend(argv)


def _export(argv: list[str]) -> None:
    from lookupvit.cli.export import export

    export(argv)


def _knn(argv: list[str]) -> None:
    from lookupvit.cli.knn import knn

    knn(argv)


def _check_data(argv: list[str]) -> int:
    from lookupvit.cli.check_data import check_data

    return check_data(argv)


def _make_shards(argv: list[str]) -> None:
    from lookupvit.cli.make_shards import make_shards

    make_shards(argv)


def _train_tokenizer(argv: list[str]) -> None:
    from lookupvit.cli.train_tokenizer import train_tokenizer_command

    train_tokenizer_command(argv)


def _bench(argv: list[str]) -> None:
    from lookupvit.cli.bench import bench_main

    bench_main(argv)


# Any other command gets its own function of the arguments after its name.
COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "compare": _compare,
    "sweep": _sweep,
    "ablate": _ablate,
    "attend": _attend,
    "cost": _cost,
    "export": _export,
    "knn": _knn,
    "check-data": _check_data,
    "make-shards": _make_shards,
    "train-tokenizer": _train_tokenizer,
    "bench": _bench,
}
TRAINER_COMMANDS = ("fit", "validate", "test", "predict")


def main(argv: list[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit code: 0, or 2 after a user's mistake, which is told in one line on stderr; of ``check-data`` 1 if it
        found bad files. Any other exception is a bug and passes through.
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
    known = (*TRAINER_COMMANDS, *COMMANDS)
    if argv[0] not in known:
        import difflib

        close = difflib.get_close_matches(argv[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}"
        return _fail("", f"unknown command {argv[0]!r}: {hint}")
    with _quick_interrupt():  # seconds of imports, whose tracebacks are nobody's concern
        from lookupvit.cli.common.errors import exit_code_of, interrupted, is_users, one_line

    try:
        return _run(argv)
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail(argv[0], "interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        if interrupted(error) and not debug:  # a library's import made another error of it
            return _fail(argv[0], "interrupted", EXIT_INTERRUPTED)
        if (code := exit_code_of(error)) is not None:  # no mistake: a signal asked for it
            return code
        if debug or not is_users(error):
            raise
        return _fail(argv[0], one_line(error))


def _run(argv: list[str]) -> int:
    if argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:]) or 0
    _trainer_command(argv)
    return 0


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
    before = signal.signal(signal.SIGINT, leave) if main_thread else None
    try:
        yield
    finally:
        if main_thread:
            signal.signal(signal.SIGINT, before)
