"""Which sample of which shard goes into which batch: computed from numbers alone, before anything is read.

The shards, in random order, form one sequence of samples. It is cut into equal pieces for the ranks and their workers,
and each piece goes through webdataset's shuffle buffer. All of this follows from (seed, epoch, ranks, workers, buffer)
and the lengths of the shards, so an epoch has an exact length and every sample has exactly one place in it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from webdataset.filters import shuffle

from datamodules.loading.resumable import Key, ResumableSampler, derived_seed


@dataclass(frozen=True)
class Plan:
    """Which samples each batch has. Every rank computes the same plan.

    Args:
        lengths: Number of samples of each shard.
        batch_size: Samples per batch of one rank. Without `drop_last` it is the largest size: the samples are spread
            evenly over the batches (with one more where a rank would otherwise have fewer batches than another).
        ranks: Number of processes that train together.
        seed: Seed of the order.
        buffer: Size of each worker's shuffle buffer, in samples; 0 keeps samples and shards in order.
        drop_last: Leave out the samples that do not fill a batch of every rank.
    """

    lengths: tuple[int, ...]
    batch_size: int
    ranks: int = 1
    seed: int = 0
    buffer: int = 0
    drop_last: bool = False

    @property
    def batches(self) -> int:
        """Batches of each rank: the same number, so that no rank waits for another."""
        samples = sum(self.lengths)
        if self.drop_last:
            return samples // (self.batch_size * self.ranks)
        return min(-(-samples // (self.ranks * self.batch_size)), samples // self.ranks)

    def _sizes(self, rank: int) -> list[int]:
        if self.drop_last:
            return [self.batch_size] * self.batches
        samples, batches = self._share(rank), self.batches
        return [samples // batches + (batch < samples % batches) for batch in range(batches)]

    def _share(self, rank: int) -> int:
        if self.drop_last:
            return self.batches * self.batch_size
        return sum(self.lengths) // self.ranks + (rank < sum(self.lengths) % self.ranks)

    def stream(
        self, epoch: int, rank: int, number: int, streams: int
    ) -> tuple[list[tuple[int, int]], list[int], list[int]]:
        """One of the streams of a rank: it has the batches `number`, `number + streams`, ...

        Returns:
            The samples in the order in which they are given, each `(shard, place in the shard)`; the sizes of the
            batches; and the shards in the order in which the buffer reads them.
        """
        sizes = self._sizes(rank)
        start = sum(map(self._share, range(rank))) + sum(sum(sizes[other::streams]) for other in range(number))
        mine = sizes[number::streams]
        samples = self._line(epoch, start, start + sum(mine))
        shards = list(dict.fromkeys(shard for shard, _ in samples))
        if self.buffer:
            chance = random.Random(derived_seed(self.seed, 4, epoch, rank, number))
            given = list(shuffle(self.buffer, initial=max(1, self.buffer // 4), rng=chance)(iter(samples)))
            return given, mine, shards
        return samples, mine, shards

    def _line(self, epoch: int, start: int, stop: int) -> list[tuple[int, int]]:
        """The samples `start` to `stop` of the sequence of all samples."""
        order, samples, first = list(range(len(self.lengths))), [], 0
        if self.buffer:
            random.Random(derived_seed(self.seed, 2, epoch)).shuffle(order)
        for shard in order:
            last = first + self.lengths[shard]
            samples += [(shard, place - first) for place in range(max(start, first), min(stop, last))]
            first = last
        return samples


class StreamSampler(ResumableSampler):
    """Asks a `StreamedImages` for one rank's batches, in order, from any batch on: `Key(epoch, batch)`."""

    def __init__(self, plan: Plan, rank: int, workers: int) -> None:
        # drop_last=True tells the tasks that no sample is repeated to fill up the last batches; none ever is.
        super().__init__(sum(plan.lengths), plan.batch_size, plan.ranks, rank, plan.seed, drop_last=True)
        self.plan, self.workers, self.batches = plan, workers, plan.batches

    def set_seed(self, seed: int) -> None:
        """Takes another seed."""
        super().set_seed(seed)
        self.plan = replace(self.plan, seed=seed)

    @property
    def order(self) -> dict[str, int]:
        """What the order depends on besides seed and data; a checkpoint keeps it."""
        return {"ranks": self.num_replicas, "workers": self.workers, "buffer": self.plan.buffer}

    def batch_indices(self, batch: int, epoch: int | None = None) -> list[int]:
        """Numbers of the samples of this rank's batch, counted through all shards."""
        streams = max(1, self.workers)
        epoch = self.epoch if epoch is None else epoch
        samples, sizes, _ = self.plan.stream(epoch, self.rank, batch % streams, streams)
        first = sum(sizes[: batch // streams])
        offsets = [0, *accumulate(self.plan.lengths)]
        return [offsets[shard] + place for shard, place in samples[first : first + sizes[batch // streams]]]

    def __iter__(self) -> Iterator[Key]:
        epoch = self.epoch
        yield from (Key(epoch, batch) for batch in range(self.start, self.batches))

    def __len__(self) -> int:
        return self.batches
