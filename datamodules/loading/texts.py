"""Texts in memory that loader processes share."""

from collections.abc import Sequence

import torch


class Texts:
    """Lists of texts in one block of memory, which forked loader processes share without copying."""

    def __init__(self, lists: Sequence[Sequence[str]]) -> None:
        texts = [text.encode(errors="replace") for one in lists for text in one]
        self.block = torch.frombuffer(bytearray(b"".join(texts)), dtype=torch.uint8)
        self.ends = torch.tensor([len(text) for text in texts]).cumsum(0)
        self.first = torch.tensor([0, *map(len, lists)]).cumsum(0)  # of each list, then the end

    def count(self, index: int) -> int:
        """Texts of a list."""
        return int(self.first[index + 1] - self.first[index])

    def get(self, index: int, number: int) -> str:
        """One text of a list."""
        place = int(self.first[index]) + number
        start = int(self.ends[place - 1]) if place else 0
        return self.block[start : int(self.ends[place])].numpy().tobytes().decode()

    def of(self, index: int) -> list[str]:
        """All texts of a list."""
        return [self.get(index, number) for number in range(self.count(index))]
