"""What the parsers of several commands share: one-line errors, sizes, the data's options, the output folder."""

import argparse

from lookupvit.grid import parse_size


class OneLineParser(argparse.ArgumentParser):
    """A parser without abbreviated options, whose errors are one line, as those of every other command."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> None:
        """What argparse calls for arguments that do not fit."""
        raise ValueError(f"{message} (see {self.prog} --help)")

    def add_output_dir(self, default: str | None = None, text: str = "folder for everything that is written") -> None:
        """Adds `--output_dir`, which other commands once called `--output`."""
        text = text if default is None else f"{text} ({default})"
        self.add_argument("--output_dir", "--output", dest="output", default=default, help=text)


def as_size(text: str) -> tuple[int, ...]:
    """The type of a compressed size, such as 3x3, or 2x5x5 of clips."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def as_pixels(text: str) -> tuple[int, int]:
    """The type of an image size, (height, width)."""
    try:
        height, width = parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no image size: give 224, or 224x320 for height x width"
        ) from None
    return height, width


def as_count(text: str) -> int:
    """The type of a count."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def is_data_option(arg: str) -> bool:
    """Whether an argument is `--data` or `--data.X`, with or without a value."""
    return arg == "--data" or arg.startswith(("--data.", "--data="))


def split_data_options(args: list[str]) -> tuple[list[str], list[str]]:
    """The arguments of a command itself, and the options of its data with their values."""
    own: list[str] = []
    data: list[str] = []
    values = iter(args)
    for arg in values:
        if not is_data_option(arg):
            own.append(arg)
        elif "=" in arg or (value := next(values, None)) is None:
            data.append(arg)
        else:
            data += [arg, value]
    return own, data


def check_data_options(command: str, args: list[str]) -> list[str]:
    """The arguments that a command's own parser left over, which must be options of the data and their values.

    Raises:
        ValueError: If another one is among them.
    """
    strange = [arg for i, arg in enumerate(args) if not is_data_option(arg) and (arg.startswith("-") or not i)]
    if strange:
        name = strange[0].partition("=")[0]
        raise ValueError(f"{name} is no option of {command}: it takes its own and --data.* (see --help)")
    return args
