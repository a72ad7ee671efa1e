"""The order of training samples, as a pure function of (seed, epoch, rank): no random state has to be saved.

The order of an epoch follows from (seed, epoch). Batch k of all ranks together is one contiguous piece of that order,
so that another number of ranks with the same global batch sees the same samples in each step.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DistributedSampler

_64_BITS = (1 << 64) - 1


class Key(NamedTuple):
    """What the sampler asks a data set for: a sample in an epoch."""

    epoch: int
    index: int


def run_seed() -> int:
    """The seed of the run, which Lightning's `seed_everything` sets on every rank; 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derived_seed(*numbers: int) -> int:
    """A seed of 64 bits from integers; neighbouring numbers give unrelated seeds.

    The integers are mixed one by one as SplitMix64 does. NumPy's SeedSequence would take 35 us for every sample.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _64_BITS
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _64_BITS
        state ^= state >> 31
    return state


class ResumableSampler(DistributedSampler):
    """One rank's share of each epoch, batch by batch, from any batch on.

    It is a DistributedSampler so that Lightning does not replace it.

    Args:
        samples: Number of samples in the data set.
        batch_size: Batch size of one rank.
        num_replicas: Number of ranks.
        rank: Rank of this process.
        seed: Seed of the order.
        drop_last: Leave out the samples that do not fill a global batch. Otherwise the ranks share them, and the first
            samples of the epoch fill them up to a multiple of the ranks.
    """

    def __init__(
        self, samples: int, batch_size: int, num_replicas: int = 1, rank: int = 0, seed: int = 0, drop_last: bool = True
    ) -> None:
        super().__init__(range(samples), num_replicas, rank, shuffle=True, seed=seed, drop_last=drop_last)
        self.batch_size, self.start = batch_size, 0
        self.global_batch = batch_size * num_replicas
        whole, rest = divmod(samples, self.global_batch)
        self._last_size = 0 if drop_last else -(-rest // num_replicas)  # of this rank's last, smaller batch
        self.num_samples = whole * batch_size + self._last_size
        self.batches = whole + (self._last_size > 0)

    def set_epoch(self, epoch: int) -> None:
        """Begins another epoch at its first batch; the present epoch goes on from where it was resumed."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    @property
    def order(self) -> dict[str, int]:
        """What the order depends on besides the seed, the samples and the global batch."""
        return {}

    def set_seed(self, seed: int) -> None:
        """Takes another seed."""
        self.seed = seed

    def begin_at(self, epoch: int, batch: int) -> None:
        """Begins in the middle of an epoch."""
        self.epoch, self.start = epoch, batch

    def batch_indices(self, batch: int, epoch: int | None = None) -> list[int]:
        """The data set's indices of this rank's batch `batch` of an epoch."""
        return self._of_batch(self._order(self.epoch if epoch is None else epoch), batch)

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 2, epoch))
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def _of_batch(self, order: list[int], batch: int) -> list[int]:
        indices = order[batch * self.global_batch : (batch + 1) * self.global_batch]
        size = self.batch_size
        if len(indices) < self.global_batch:
            size = self._last_size
            indices += order[: size * self.num_replicas - len(indices)]
        return indices[self.rank * size : (self.rank + 1) * size]

    def __iter__(self) -> Iterator[Key]:
        epoch, order = self.epoch, self._order(self.epoch)
        for batch in range(self.start, self.batches):
            yield from (Key(epoch, index) for index in self._of_batch(order, batch))

    def __len__(self) -> int:
        return self.num_samples
