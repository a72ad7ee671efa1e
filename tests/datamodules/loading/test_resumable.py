"""The resumable loader: the same batches after a resume, for any number of workers, and for other numbers of ranks."""

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from datamodules import ImageFolderDataModule
from datamodules.loading.resumable import (
    ResumableSampler,
    SeededSamples,
    derived_seed,
    sample_name,
    training_loader,
)
from datamodules.loading.retry import with_retries
from datamodules.loading.workers import WorkerDiedError


class Noisy(Dataset):
    """Sample i is i and a random number, as an augmentation would be."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, float(torch.rand(()))


def noisy_collate(samples: list[tuple[int, float]]) -> torch.Tensor:
    return torch.tensor([[*sample, float(torch.rand(()))] for sample in samples], dtype=torch.float64)


def loader(batch_size: int = 4, **options):
    return training_loader(Noisy(), batch_size, noisy_collate, **{"num_workers": 0, **options})


def epochs(source, count: int) -> list[torch.Tensor]:
    return [batch for _ in range(count) for batch in source]


def test_every_epoch_has_its_order_and_all_of_the_samples() -> None:
    first, second = epochs(loader(drop_last=False), 1), epochs(loader(drop_last=False), 2)[6:]
    assert [len(batch) for batch in first] == [4, 4, 4, 4, 4, 2]
    orders = [torch.cat(part)[:, 0].tolist() for part in (first, second)]
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(22))
    assert torch.cat(first)[:, 1:].unique().numel() == 44 and len(loader()) == 5


@pytest.mark.parametrize(
    ("before", "after", "done"), [(0, 0, 0), (0, 0, 3), (0, 0, 5), (0, 0, 7), (2, 0, 3), (0, 2, 5), (2, 1, 7)]
)
def test_a_resumed_loader_goes_on_exactly(before: int, after: int, done: int) -> None:
    want = epochs(loader(), 3)
    first, got = loader(num_workers=before), []
    while len(got) < done:
        for batch in first:
            got.append(batch)
            if len(got) == done:
                break
    second = loader(num_workers=after, persistent_workers=True)
    second.load_state_dict(first.state_dict())
    got += epochs(second, 3 - done // 5)
    assert len(got) == len(want) and all(map(torch.equal, got, want))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_loader_keeps_the_seed_of_the_checkpoint(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    want = epochs(loader(), 2)
    state = {**loader().state_dict(), "batches": 3}
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert not torch.equal(epochs(loader(), 1)[0], want[0])
    resumed = loader(num_workers=workers)
    resumed.load_state_dict(state)
    got = epochs(resumed, 2)
    assert len(got) == 7 and all(map(torch.equal, got, want[3:]))  # the order, the samples' and the batches' chance
    assert resumed.state_dict()["seed"] == 0


def test_the_models_chance_is_not_touched() -> None:
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    batches = iter(loader())
    next(batches)
    assert torch.equal(torch.rand(1), want[:1])
    next(batches)
    assert torch.equal(torch.rand(2), want[1:])


def test_ranks_share_each_global_batch() -> None:
    one = ResumableSampler(22, 6, drop_last=False)
    for ranks in (2, 3):
        parts = [ResumableSampler(22, 6 // ranks, ranks, rank, drop_last=False) for rank in range(ranks)]
        for batch in range(3):
            together = [index for part in parts for index in part.batch_indices(batch)]
            assert together == one.batch_indices(batch)
        last = [part.batch_indices(3) for part in parts]  # 4 samples are left
        assert {len(part) for part in last} == {2}
        assert set(one.batch_indices(3)) <= {index for part in last for index in part}
        assert [len(part) for part in parts] == [len(list(part)) for part in parts]


@pytest.mark.parametrize(("ranks", "batch_size", "begins"), [(2, 4, 3), (4, 2, 3), (1, 4, 6), (1, 16, 1)])
def test_a_checkpoint_of_two_ranks_resumes_on_others(
    ranks: int, batch_size: int, begins: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", str(ranks))  # the run that resumes has another seed: still none is missed
    state = {"epoch": 1, "batches": 3, "global_batch": 8, "ranks": 2, "samples": 64, "seed": 0}
    order = ResumableSampler(64, 64)
    order.set_epoch(1)
    seen = set(order.batch_indices(0)[:24])
    rest: list[int] = []
    for rank in range(ranks):
        data = torch.utils.data.TensorDataset(torch.arange(64))
        trainer = SimpleNamespace(world_size=ranks, global_rank=rank, num_devices=ranks)
        there = training_loader(data, batch_size, list, trainer=trainer, num_workers=0)
        there.load_state_dict(state)
        assert there.sampler.start == begins
        rest += [int(sample[0]) for batch in there for sample in batch]
    assert sorted({*rest, *seen}) == list(range(64))
    assert len(rest) == 64 - begins * ranks * batch_size  # of 16 at once: 8 samples are seen again


def test_seeds_of_neighbours_are_unrelated() -> None:
    seeds = [derived_seed(0, kind, epoch, index) for kind in (0, 1) for epoch in range(20) for index in range(100)]
    assert len(set(seeds)) == 4000
    bits = torch.tensor([[seed >> place & 1 for place in range(32)] for seed in seeds], dtype=torch.float64)
    assert ((bits.mean(0) - 0.5).abs() < 0.04).all()  # 5 standard deviations


def test_images_are_augmented_alike_for_any_number_of_workers(image_tree: Path) -> None:
    def batches(workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data = ImageFolderDataModule(
            str(image_tree), img_size=16, batch_size=4, num_workers=workers, recipe="deit", persistent_workers=False
        )
        return epochs(data.train_dataloader(), 2)

    one, two = batches(0), batches(2)
    assert len(one) == len(two) == 6
    for (images, targets), (images2, targets2) in zip(one, two, strict=True):
        assert torch.equal(images, images2) and torch.equal(targets, targets2)
    assert not torch.equal(one[0][0], one[3][0])


def test_samples_have_names(image_tree: Path) -> None:
    data = ImageFolderDataModule(str(image_tree), batch_size=4, num_workers=0, val_fraction=0.25)
    held = data.train_dataloader().dataset
    assert Path(sample_name(held, 0)).is_file() and sample_name(held, 0) != sample_name(held, 1)
    assert sample_name(SeededSamples(Noisy(), 0), 7) == "sample 7"


class Deadly(Noisy):
    """A sample that takes its loader process down, as a crash in a decoder does."""

    samples = [(f"file{i}.jpg", 0) for i in range(22)]

    def __getitem__(self, index: int) -> tuple[int, float]:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_loader_process_that_dies_names_its_file() -> None:
    with pytest.raises(WorkerDiedError, match=r"died while it read file5.jpg ") as error:
        epochs(training_loader(Deadly(), 4, noisy_collate, num_workers=2), 2)
    assert "\n" not in str(error.value)


def test_transient_errors_are_tried_again() -> None:
    def read(errors: list[int]) -> str:
        if errors:
            raise OSError(errors.pop(0), "x")
        return "read"

    some, many, gone = [errno.EIO, errno.ESTALE], [errno.EIO] * 3, [errno.ENOENT] * 2
    assert with_retries(lambda: read(some), 5, 0.001) == "read"
    with pytest.raises(OSError, match="x"):
        with_retries(lambda: read(many), 3, 0.001)
    with pytest.raises(FileNotFoundError):
        with_retries(lambda: read(gone), 5, 0.001)
    assert gone == [errno.ENOENT]


def test_seeds_are_splitmix64_s() -> None:
    """The first numbers of the published generator from the seeds 0 and 1234567."""
    assert derived_seed(0) == 0xE220A8397B1DCDAF
    assert derived_seed(1234567) == 6457827717110365317
    assert len({derived_seed(a, b) for a in range(50) for b in range(50)}) == 2500
