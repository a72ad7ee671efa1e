import argparse


class OneLineParser(argparse.ArgumentParser):
    """Errors are one line, as those of every other command."""

    def error(self, message: str) -> None:
        """What argparse calls for arguments that do not fit."""
        raise ValueError(f"{message} (see {self.prog} --help)")
