"""Training batches as a pure function of (seed, epoch, position): exact resume, whatever the number of workers.

Nothing random is carried along, so that nothing random has to be saved. The order of an epoch follows from (seed,
epoch); the augmentation of a sample from (seed, epoch, its index); what mixes a batch from (seed, epoch, its first
sample). A checkpoint then holds one number that matters, the batches done, and a resumed loader starts there without
reading what came before. Batch k of all ranks together is one contiguous piece of the epoch's order, so that another
number of ranks with the same global batch sees the same samples step by step.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from datamodules.loading.workers import Watched, WorkerDiedError, default_workers, leave_signals

_64_BITS = (1 << 64) - 1


class Key(NamedTuple):
    """What the sampler asks a data set for: a sample, in an epoch."""

    epoch: int
    index: int


def run_seed() -> int:
    """The seed of the run, where Lightning's ``seed_everything`` leaves it, on every rank; 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derived_seed(*numbers: int) -> int:
    """A seed of 64 bits from integers; neighbouring numbers give unrelated seeds.

    SplitMix64's mixing, a number at a time: a sample cannot wait for NumPy's SeedSequence, which takes 35 us.
    """
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _64_BITS
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _64_BITS
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _64_BITS
        state ^= state >> 31
    return state


class SeededSamples(Watched, Dataset):
    """A data set whose samples are augmented by chance of (seed, epoch, index) alone.

    Asked for a `Key` it gives ``(key, sample)``; for a plain index, the sample. Other attributes are the data set's.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__()
        self._inner, self._seed = dataset, seed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while it is unpickled in a worker, before there is an inner one
            raise AttributeError(name)
        return getattr(self._inner, name)

    def set_seed(self, seed: int) -> None:
        """Takes another seed, before the loader's processes exist."""
        self._seed = seed

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, key: Key | int) -> Any:
        if not isinstance(key, Key):
            return self._inner[key]
        self.now_reading(key.index)
        torch.default_generator.manual_seed(derived_seed(self._seed, 0, *key))
        return key, self._inner[key.index]


class SeededCollate:
    """A collate function whose chance (mixing, erasing) follows from the first sample of the batch."""

    def __init__(self, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.collate, self.seed = collate, seed

    def set_seed(self, seed: int) -> None:
        """Takes another seed, before the loader's processes exist."""
        self.seed = seed

    def __call__(self, samples: list[Any]) -> Any:
        """Samples of `SeededSamples`, with or without their keys, to a batch."""
        if not (isinstance(samples[0], tuple) and isinstance(samples[0][0], Key)):
            return self.collate(samples)
        torch.default_generator.manual_seed(derived_seed(self.seed, 1, *samples[0][0]))
        return self.collate([sample for _, sample in samples])


class ResumableSampler(DistributedSampler):
    """One rank's share of each epoch, batch by batch, from any batch on.

    It is a DistributedSampler so that Lightning leaves it alone.

    Args:
        samples: n, in the data set.
        batch_size: of one rank.
        num_replicas: ranks.
        rank: of this process.
        seed: of the order.
        drop_last: leave out what does not fill a global batch; else the ranks share it, and the first samples of the
            epoch fill it up to a multiple of the ranks.
    """

    def __init__(
        self, samples: int, batch_size: int, num_replicas: int = 1, rank: int = 0, seed: int = 0, drop_last: bool = True
    ) -> None:
        super().__init__(range(samples), num_replicas, rank, shuffle=True, seed=seed, drop_last=drop_last)
        self.batch_size, self.start = batch_size, 0
        self.global_batch = batch_size * num_replicas
        whole, rest = divmod(samples, self.global_batch)
        self._share = 0 if drop_last else -(-rest // num_replicas)  # of the last, smaller batch
        self.num_samples = whole * batch_size + self._share
        self.batches = whole + (self._share > 0)

    def set_epoch(self, epoch: int) -> None:
        """Begins another epoch at its first batch; the present one goes on from where it was resumed."""
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
        """The data set's indices of this rank's batch ``batch`` of an epoch."""
        return self._of_batch(self._order(self.epoch if epoch is None else epoch), batch)

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, 2, epoch))
        return torch.randperm(len(self.dataset), generator=generator).tolist()

    def _of_batch(self, order: list[int], batch: int) -> list[int]:
        here = order[batch * self.global_batch : (batch + 1) * self.global_batch]
        share = self.batch_size
        if len(here) < self.global_batch:
            share = self._share
            here += order[: share * self.num_replicas - len(here)]
        return here[self.rank * share : (self.rank + 1) * share]

    def __iter__(self) -> Iterator[Key]:
        epoch, order = self.epoch, self._order(self.epoch)
        for batch in range(self.start, self.batches):
            yield from (Key(epoch, index) for index in self._of_batch(order, batch))

    def __len__(self) -> int:
        return self.num_samples


class ResumableLoader(DataLoader):
    """A DataLoader over a `ResumableSampler` that says how far it is and goes on from there.

    Lightning keeps ``state_dict()`` in every checkpoint and hands it back before the first batch of a resumed run.
    ``resumed`` is what it handed back, or None.
    """

    resumed: dict[str, int] | None = None
    _given = 0  # batches of the present epoch that have left this loader, those before a resume included

    def __iter__(self) -> Iterator[Any]:
        # All of it waits for the first batch: Lightning makes an iterator before it knows where a resumed run stands.
        batches = super().__iter__()
        self._given = getattr(self.sampler, "start", 0)
        here = self.num_workers == 0  # the chance of the data then shares a generator with the model's
        while True:
            state = torch.default_generator.get_state() if here else None
            try:
                batch = next(batches)
            except StopIteration:
                break
            except (RuntimeError, ConnectionError, EOFError) as error:
                workers = getattr(batches, "_workers", [])
                try:
                    self._explain_death(error, workers)
                except RuntimeError as later:  # torch's own news of it, which comes at any moment, even here
                    self._explain_death(later, workers)
                raise
            finally:
                if here:
                    torch.default_generator.set_state(state)
            self._given += 1
            yield batch
        if isinstance(self.sampler, ResumableSampler):  # for loops that set no epoch themselves
            self.sampler.set_epoch(self.sampler.epoch + 1)
            self._given = 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches done in it, and what decides the order: plain numbers, the same on every rank."""
        sampler = self.sampler
        if not isinstance(sampler, ResumableSampler):  # Lightning put another in its place (overfit_batches)
            return {}
        over = self._given >= sampler.batches
        return {
            "epoch": sampler.epoch + over,
            "batches": 0 if over else self._given,
            "global_batch": sampler.global_batch,
            "ranks": sampler.num_replicas,
            "samples": len(sampler.dataset),
            "seed": sampler.seed,
            **sampler.order,
        }

    def _explain_death(self, error: Exception, workers: Sequence[Any]) -> None:
        """Raises a `WorkerDiedError` where torch only says that some process was killed, or lost the line to it."""
        found = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        dead = [int(process) for process in found[1].split(",")] if found else []
        if not isinstance(error, RuntimeError):
            for worker in workers:
                worker.join(timeout=0.5)
            dead = [worker.pid for worker in workers if worker.exitcode]
        if not dead or not isinstance(self.dataset, Watched):
            return
        read = [self.dataset.last_read_by(process) for process in dead]
        names = [sample_name(self.dataset, index) for index in read if index is not None]
        raise WorkerDiedError(
            f"a loader process died while it read {', '.join(names) or 'its first'} ({str(error).splitlines()[0]}); "
            "look at that file and the machine's memory, or find it in one process with --data.num_workers 0"
        ) from error

    def names_of_batch(self, batch: int) -> list[str]:
        """Files (or indices) of this rank's batch ``batch`` of the present epoch."""
        if not isinstance(self.sampler, ResumableSampler):
            return []
        return [sample_name(self.dataset, index) for index in self.sampler.batch_indices(batch)]

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where ``state`` stood; with another global batch, at the last whole batch before that.

        The data keep the seed of ``state``, whatever the seed of this run: in another order, samples of the epoch would
        be missed and others seen twice.
        """
        if not state or not isinstance(self.sampler, ResumableSampler):
            return
        self.resumed = state
        for part in (self.sampler, self.dataset, self.collate_fn):
            part.set_seed(state["seed"])
        done = state["batches"] * state["global_batch"] // self.sampler.global_batch
        self.sampler.begin_at(state["epoch"], min(done, self.sampler.batches - 1))


def training_loader(
    dataset: Dataset,
    batch_size: int,
    collate: Callable[[list[Any]], Any],
    *,
    trainer: Any = None,
    num_workers: int | None = None,
    drop_last: bool = True,
    what: str = "images",
    **options: Any,
) -> ResumableLoader:
    """The shuffled training loader of one rank, resumable at any batch.

    Args:
        dataset: map-style; its chance must come from torch's global generator.
        batch_size: of this rank.
        collate: of the samples.
        trainer: Lightning's Trainer, which knows the ranks; None: one process.
        num_workers: loader processes; None: this machine's cores divided by its devices, at most 16.
        drop_last: leave out what does not fill a batch of every rank.
        what: name of the samples, for the error.
        options: of torch's DataLoader.

    Raises:
        ValueError: the data do not fill one batch and nothing is left of them.
    """
    ranks, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
    if drop_last and len(dataset) // ranks < batch_size:
        raise ValueError(
            f"{len(dataset)} training {what} on {ranks} device(s) do not fill one batch of {batch_size}; "
            "set a smaller data.batch_size, or data.drop_last=false"
        )
    if num_workers is None:
        num_workers = default_workers(trainer)
    if num_workers == 0:  # torch refuses what is meant for workers
        options |= {"persistent_workers": False, "prefetch_factor": None}
    seed = run_seed()
    return ResumableLoader(
        SeededSamples(dataset, seed),
        batch_size=batch_size,
        sampler=ResumableSampler(len(dataset), batch_size, ranks, rank, seed, drop_last),
        num_workers=num_workers,
        collate_fn=SeededCollate(collate, seed),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals,
        generator=torch.Generator(),  # else each epoch draws a seed for its workers from the model's
        **options,
    )


def sample_name(dataset: Any, index: int) -> str:
    """A sample's file where the data set says it, else its index."""
    if isinstance(dataset, SeededSamples):
        dataset = dataset._inner
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, dataset.indices[index]
    if hasattr(dataset, "sample_name"):
        return dataset.sample_name(index)
    samples = getattr(dataset, "samples", None)
    return str(samples[index][0]) if samples is not None else f"sample {index}"
