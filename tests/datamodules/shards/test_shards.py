"""Shards: written, read back once each by any ranks and workers, in an order of (seed, epoch), resumed, damaged."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TREE_CLASSES, write_tree

from datamodules import WebDatasetDataModule
from datamodules.images.folder import decode_rgb
from datamodules.loading.resumable import Key
from datamodules.shards.plan import Plan
from datamodules.shards.shards import CorruptShardError, open_url
from lookupvit.cli.main import main


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 training images in 4 shards of 5, 5, 5 and 2, and 5 validation images in 2."""
    folder = tmp_path_factory.mktemp("shards")
    write_tree(folder / "tree", TREE_CLASSES, {"train": 6, "val": 2}, size=32)
    (folder / "tree" / "train" / TREE_CLASSES[0] / "0.JPEG").unlink()
    (folder / "tree" / "val" / TREE_CLASSES[0] / "0.JPEG").unlink()
    for split, count in (("train", 5), ("val", 3)):
        argv = [str(folder / "tree"), str(folder / "out"), "--split", split, "--max_count", str(count)]
        assert main(["make-shards", *argv]) == 0
    return folder / "out"


class Ranks:
    """What a DataModule asks of the Trainer."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.global_rank, self.world_size, self.num_devices = rank, ranks, ranks


def module(root: Path | str, rank: int = 0, ranks: int = 1, **options) -> WebDatasetDataModule:
    defaults = {"img_size": 32, "batch_size": 2, "num_workers": 0, "shuffle_buffer": 4, "persistent_workers": False}
    data = WebDatasetDataModule(str(root), **{**defaults, **options})
    data.trainer = Ranks(rank, ranks)
    return data


def keys(loader) -> list[list[int]]:
    """Numbers of the samples of each batch, as they come out of the workers."""
    loader.collate_fn = _numbers
    return list(loader)


def flat(batches: list[list[int]]) -> list[int]:
    return [number for batch in batches for number in batch]


def _numbers(samples: list) -> list[int]:
    return [key.index for key, _ in samples]


def test_make_shards_writes_what_timm_reads(shards: Path) -> None:
    from timm.data.readers.reader_wds import ReaderWds

    info = json.loads((shards / "_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [5, 5, 5, 2] and info["classes"] == list(TREE_CLASSES)
    assert not list(shards.glob("*partial*"))
    reader = ReaderWds(str(shards), split="train", batch_size=1, is_training=False, input_key="jpg")
    assert len(reader) == 17
    assert Counter(label for _, label in reader) == {0: 5, 1: 6, 2: 6}


def test_every_image_comes_back_with_its_class(shards: Path) -> None:
    tree = shards.parent / "tree" / "val"
    want = Counter(
        (label, int(decode_rgb(path).sum()))
        for label, name in enumerate(TREE_CLASSES)
        for path in (tree / name).iterdir()
    )
    loader = module(shards).val_dataloader()
    got = [sample for batch in range(len(loader)) for _, sample in loader.dataset[Key(0, batch)]]
    assert Counter((label, int(image.sum())) for image, label in got) == want


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_sample_once_in_equally_many_batches(ranks: int, workers: int, shards: Path) -> None:
    val = [module(shards, rank, ranks, num_workers=workers).val_dataloader() for rank in range(ranks)]
    assert {len(loader) for loader in val} == {-(-5 // (2 * ranks))}
    batches = [keys(loader) for loader in val]
    assert {len(mine) for mine in batches} == {len(val[0])} and all(1 <= len(b) <= 2 for mine in batches for b in mine)
    assert sorted(number for mine in batches for batch in mine for number in batch) == list(range(5))

    train = [module(shards, rank, ranks, num_workers=workers).train_dataloader() for rank in range(ranks)]
    batches = [keys(loader) for loader in train]
    assert all(len(mine) == 8 // ranks and all(len(batch) == 2 for batch in mine) for mine in batches)
    assert len({number for mine in batches for batch in mine for number in batch}) == 16  # one of 17 is left out
    whole = [module(shards, rank, ranks, num_workers=workers, drop_last=False) for rank in range(ranks)]
    numbers = [number for data in whole for batch in keys(data.train_dataloader()) for number in batch]
    assert sorted(numbers) == list(range(17))


def test_one_sample_a_batch_on_uneven_ranks() -> None:
    plan = Plan((3, 2), 1, 2)
    assert plan.batches == 2
    assert [plan.stream(0, rank, 0, 1)[1] for rank in (0, 1)] == [[2, 1], [1, 1]]


def test_the_order_follows_from_seed_and_epoch(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = module(shards, num_workers=2, persistent_workers=True).train_dataloader()
    first, second = keys(loader), keys(loader)
    assert first != second and sorted(flat(first)) != flat(first)
    again = keys(module(shards, num_workers=2).train_dataloader())
    assert again == first
    assert [loader.sampler.batch_indices(batch, 1) for batch in range(8)] == second
    assert loader.names_of_batch(0)[0].endswith(")") and "train-0000" in loader.names_of_batch(0)[0]
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert keys(module(shards, num_workers=2).train_dataloader()) != first


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_the_same_pictures(
    workers: int, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"num_workers": workers, "recipe": "deit"}
    whole = [batch for _ in range(2) for batch in module(shards, **options).train_dataloader()][:8]
    state = {**module(shards, **options).train_dataloader().state_dict(), "epoch": 0, "batches": 3}
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # another run's: the data keep the checkpoint's
    loader = module(shards, **options).train_dataloader()
    loader.load_state_dict(state)
    rest = list(loader)
    assert len(rest) == 5
    for got, want in zip(rest, whole[3:], strict=True):
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert loader.state_dict()["epoch"] == 1


def test_a_resume_opens_only_the_shards_it_needs(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("datamodules.shards.shards.open_url", lambda url: (opened.append(url), open_url(url))[1])
    loader = module(shards, shuffle_buffer=1).train_dataloader()
    opened.clear()
    loader.load_state_dict({**loader.state_dict(), "epoch": 0, "batches": 7})
    assert len(list(loader)) == 1 and 1 <= len(opened) <= 2


def test_addresses_of_fsspec_and_pipes(shards: Path) -> None:
    want = sorted(flat(keys(module(shards).val_dataloader())))
    for root in (f"file://{shards}", f"pipe:cat {shards}/{{}}"):
        data = module(root)
        assert sorted(flat(keys(data.val_dataloader()))) == want and data.num_classes == 3
    with pytest.raises(FileNotFoundError, match=r"cannot read 'pipe:cat nowhere/_info.json'"):
        module("pipe:cat nowhere/{}").setup("fit")


def damaged(shards: Path, folder: Path, length: int) -> Path:
    folder.mkdir()
    for file in shards.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    path = folder / "val-00000.tar"
    path.write_bytes(path.read_bytes()[:length])
    return folder


@pytest.mark.parametrize(("length", "workers"), [(0, 0), (700, 0), (1024, 0), (2048, 0), (3000, 0), (3000, 1)])
def test_a_truncated_shard_is_named_in_one_line(length: int, workers: int, shards: Path, tmp_path: Path) -> None:
    root = damaged(shards, tmp_path / "cut", length)
    with pytest.raises(CorruptShardError, match=r"the shard '.*cut/val-00000\.tar'") as error:
        list(module(root, num_workers=workers).val_dataloader())
    assert "\n" not in str(error.value)


def test_a_transient_error_in_a_stream_is_read_again(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = keys(module(shards).val_dataloader())
    failures = iter([3000, 5000])

    class Hiccup:
        def __init__(self, file, limit: int) -> None:
            self.file, self.left = file, limit

        def read(self, size: int) -> bytes:
            self.left -= size
            if self.left < 0:
                raise OSError(5, "Input/output error")
            return self.file.read(size)

        def close(self) -> None:
            self.file.close()

    monkeypatch.setattr("datamodules.shards.shards.open_url", lambda url: Hiccup(open_url(url), next(failures, 10**9)))
    data = module(shards)
    monkeypatch.setattr(data, "_info", json.loads((shards / "_info.json").read_text()))
    assert keys(data.val_dataloader()) == want


def test_mistakes_are_one_line(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder '.*nowhere' of shards: set data.root"):
        module(tmp_path / "nowhere").setup("fit")
    with pytest.raises(FileNotFoundError, match=r"cannot read '.*_info.json'.*make-shards writes it"):
        module(tmp_path).setup("fit")
    with pytest.raises(ValueError, match="has no split 'other': it has train, val"):
        module(shards, train_split="other").setup("fit")
    with pytest.raises(ValueError, match=r"num_classes is 7, but .* has 3 classes"):
        module(shards, num_classes=7).setup("fit")
    with pytest.raises(ValueError, match="do not fill one batch of 100"):
        module(shards, batch_size=100).train_dataloader()
    assert main(["make-shards", str(shards.parent / "tree"), str(shards)]) == 2
    assert "has a split 'train' already: choose another --name, or --overwrite" in capsys.readouterr().err


def test_a_write_that_fails_leaves_no_shard(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lookupvit.cli.make_shards.os.fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    assert main(["make-shards", str(shards.parent / "tree"), str(tmp_path / "out")]) == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_fit_on_shards_and_resume_from_the_command_line(shards: Path, tmp_path: Path) -> None:
    config = {
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "log_every_n_steps": 1},
        "model": {
            "class_path": "ClassificationTask",
            "init_args": {
                "name": "lookupvit_tiny_patch16_224",
                "compressed_size": [2, 2],
                "args": {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 8},
            },
        },
        "data": {
            "class_path": "WebDatasetDataModule",
            "init_args": {"root": str(shards), "img_size": 32, "batch_size": 4, "num_workers": 0, "recipe": "deit"},
        },
        "output_dir": str(tmp_path),
        "save_every_n_steps": 3,
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    argv = ["fit", "--config", str(tmp_path / "run.json")]
    assert main([*argv, "--name", "whole"]) == 0
    folder = tmp_path / "whole" / "version_0" / "checkpoints"
    whole = torch.load(folder / "last.ckpt", weights_only=True)
    assert whole["global_step"] == 8
    # the checkpoint before the last one: after step 6, in the middle of the second epoch
    assert main([*argv, "--name", "rest", "--ckpt_path", str(folder / "last.previous.ckpt")]) == 0
    rest = torch.load(tmp_path / "rest" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert torch.load(folder / "last.previous.ckpt", weights_only=True)["global_step"] == 6
    assert all(torch.equal(value, rest["state_dict"][name]) for name, value in whole["state_dict"].items())


def test_images_left_out_of_shards_are_said(tmp_path: Path) -> None:
    data = WebDatasetDataModule(str(tmp_path))
    data._streams = {"train": SimpleNamespace(left_out=2), "val": SimpleNamespace(left_out=0)}
    with pytest.warns(UserWarning, match="2 corrupt images of shards were left out of train") as said:
        data.teardown()
    assert len(said) == 1
