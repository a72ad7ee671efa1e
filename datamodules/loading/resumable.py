"""The training loader, which goes on exactly where a checkpoint stood, with any number of workers.

No random state is carried along. The order of the samples follows from (seed, epoch), as `loading/order.py` says; the
augmentation of a sample from (seed, epoch, its index); MixUp and erasing in a batch from (seed, epoch, its first
sample). A checkpoint needs only the number of batches done, and a resumed loader starts there without reading the
samples before it.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from datamodules.loading.order import Key, ResumableSampler, derived_seed, run_seed
from datamodules.loading.workers import Watched, WorkerDiedError, worker_options

__all__ = [
    "Key",
    "ResumableLoader",
    "ResumableSampler",
    "SeededCollate",
    "SeededSamples",
    "derived_seed",
    "run_seed",
    "sample_name",
    "training_loader",
]


class SeededSamples(Watched, Dataset):
    """A data set whose random augmentation depends on (seed, epoch, index) alone.

    Asked for a `Key` it gives `(key, sample)`; for a plain index, the sample. Other attributes are the data set's.
    """

    def __init__(self, dataset: Dataset, seed: int) -> None:
        super().__init__()
        self._inner, self._seed = dataset, seed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # also while a worker unpickles it, before `_inner` exists
            raise AttributeError(name)
        return getattr(self._inner, name)

    def set_seed(self, seed: int) -> None:
        """Takes another seed; to be called before the worker processes start."""
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
    """A collate function whose randomness (MixUp, erasing) follows from the first sample of the batch."""

    def __init__(self, collate: Callable[[list[Any]], Any], seed: int) -> None:
        self.collate, self.seed = collate, seed

    def set_seed(self, seed: int) -> None:
        """Takes another seed; to be called before the worker processes start."""
        self.seed = seed

    def __call__(self, samples: list[Any]) -> Any:
        """Makes a batch of samples of `SeededSamples`, with or without their keys."""
        if not (isinstance(samples[0], tuple) and isinstance(samples[0][0], Key)):
            return self.collate(samples)
        torch.default_generator.manual_seed(derived_seed(self.seed, 1, *samples[0][0]))
        return self.collate([sample for _, sample in samples])


class ResumableLoader(DataLoader):
    """A DataLoader over a `ResumableSampler` that tells how far it is and goes on from there.

    Lightning keeps `state_dict()` in every checkpoint and hands it back before the first batch of a resumed run.

    Attributes:
        resumed: The state that Lightning handed back, or None.
    """

    resumed: dict[str, int] | None = None
    _given = 0  # batches of the present epoch that have left this loader, those before a resume included

    def __iter__(self) -> Iterator[Any]:
        # Everything waits for the first batch: Lightning makes an iterator before it knows where a resumed run stands.
        batches = super().__iter__()
        self._given = getattr(self.sampler, "start", 0)
        in_process = self.num_workers == 0  # the data then share a random generator with the model
        while True:
            state = torch.default_generator.get_state() if in_process else None
            try:
                batch = next(batches)
            except StopIteration:
                break
            except (RuntimeError, ConnectionError, EOFError) as error:
                workers = getattr(batches, "_workers", [])
                try:
                    self._explain_death(error, workers)
                except RuntimeError as later:  # torch may report the death at any moment, even here
                    self._explain_death(later, workers)
                raise
            finally:
                if in_process:
                    torch.default_generator.set_state(state)
            self._given += 1
            yield batch
        if isinstance(self.sampler, ResumableSampler):  # for loops that set no epoch themselves
            self.sampler.set_epoch(self.sampler.epoch + 1)
            self._given = 0

    def state_dict(self) -> dict[str, int]:
        """Epoch, batches done in it, and what decides the order: plain numbers, the same on every rank."""
        sampler = self.sampler
        if not isinstance(sampler, ResumableSampler):  # Lightning replaced it (overfit_batches)
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

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on where `state` stood; with another global batch, at the last whole batch before that.

        The data keep the seed of `state`, whatever the seed of this run: in another order, some samples of the epoch
        would be missed and others seen twice.
        """
        if not state or not isinstance(self.sampler, ResumableSampler):
            return
        self.resumed = state
        for part in (self.sampler, self.dataset, self.collate_fn):
            part.set_seed(state["seed"])
        done = state["batches"] * state["global_batch"] // self.sampler.global_batch
        self.sampler.begin_at(state["epoch"], min(done, self.sampler.batches - 1))

    def names_of_batch(self, batch: int) -> list[str]:
        """Files (or indices) of this rank's batch `batch` of the present epoch."""
        if not isinstance(self.sampler, ResumableSampler):
            return []
        return [sample_name(self.dataset, index) for index in self.sampler.batch_indices(batch)]

    def _explain_death(self, error: Exception, workers: Sequence[Any]) -> None:
        """Raises a `WorkerDiedError` where torch says only that a process was killed or that its pipe broke."""
        match = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        dead = [int(process) for process in match[1].split(",")] if match else []
        if not isinstance(error, RuntimeError):
            for worker in workers:
                worker.join(timeout=0.5)
            dead = [worker.pid for worker in workers if worker.exitcode]
        if not dead or not isinstance(self.dataset, Watched):
            return
        read = [self.dataset.last_read_by(process) for process in dead]
        names = [sample_name(self.dataset, index) for index in read if index is not None]
        reason = (str(error).splitlines() or [type(error).__name__])[0]  # an EOFError says nothing
        raise WorkerDiedError(
            f"a loader process died while it read {', '.join(names) or 'its first'} ({reason}); "
            "look at that file and the machine's memory, or find it in one process with --data.num_workers 0"
        ) from error


def training_loader(
    dataset: Dataset,
    batch_size: int,
    collate: Callable[[list[Any]], Any],
    *,
    trainer: Any = None,
    num_workers: int | None = None,
    drop_last: bool = True,
    what: str = "images",
    persistent_workers: bool = False,
    prefetch_factor: int | None = None,
) -> ResumableLoader:
    """The shuffled training loader of one rank, which can be resumed at any batch.

    Args:
        dataset: Map-style; all randomness must come from torch's global generator.
        batch_size: Batch size of this rank.
        collate: Makes a batch of samples.
        trainer: Lightning's Trainer, which knows the ranks; None = one process.
        num_workers: Loader processes; None = this machine's cores divided by its devices, at most 16.
        drop_last: Leave out the samples that do not fill a batch of every rank.
        what: Name of the samples, for the error.
        persistent_workers: Keep the loader processes between epochs.
        prefetch_factor: Batches that each worker prepares ahead; None = torch's default.

    Raises:
        ValueError: The data do not fill one batch, and `drop_last` would leave nothing.
    """
    ranks, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
    if drop_last and len(dataset) // ranks < batch_size:
        raise ValueError(
            f"{len(dataset)} training {what} on {ranks} device(s) do not fill one batch of {batch_size}; "
            "set a smaller data.batch_size, or data.drop_last=false"
        )
    seed = run_seed()
    return ResumableLoader(
        SeededSamples(dataset, seed),
        batch_size=batch_size,
        sampler=ResumableSampler(len(dataset), batch_size, ranks, rank, seed, drop_last),
        collate_fn=SeededCollate(collate, seed),
        generator=torch.Generator(),  # otherwise each epoch would draw its workers' seed from the model's generator
        **worker_options(num_workers, trainer, persistent_workers, prefetch_factor),
    )


def sample_name(dataset: Any, index: int) -> str:
    """A sample's file where the data set knows it, else its index."""
    if isinstance(dataset, SeededSamples):
        dataset = dataset._inner
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, dataset.indices[index]
    if hasattr(dataset, "sample_name"):
        return dataset.sample_name(index)
    samples = getattr(dataset, "samples", None)
    return str(samples[index][0]) if samples is not None else f"sample {index}"
