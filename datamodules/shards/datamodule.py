"""ImageNet-1k, -21k and the like as WebDataset shards in timm's layout, streamed from a folder or an address."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from datamodules.images.collate import Collate, mixing
from datamodules.images.datamodule import ImageFolderDataModule
from datamodules.images.names import imagenet_wnids, readable_names
from datamodules.loading.datamodule import SPLITS_OF_STAGE, STAGE_OF_SPLIT
from datamodules.loading.resumable import ResumableLoader, SeededCollate, run_seed
from datamodules.loading.untrusted import is_address
from datamodules.shards.plan import Plan, StreamSampler
from datamodules.shards.shards import INFO, Shards, StreamedImages, read_info, read_split, shard_url

_OF_FOLDERS = ("cache", "exclude", "val_fraction")


class WebDatasetDataModule(ImageFolderDataModule):
    """Images from shards `NAME-0000.tar` that hold `jpg` and `cls` files, beside an `_info.json` with their lengths.

    Every node, rank and worker reads its own part. An epoch of training gives each sample once, but leaves out the
    last samples where they do not fill a batch of every rank. Evaluation gives each sample exactly once, in the same
    number of batches on every rank.

    A run that is resumed in the middle of an epoch goes on exactly, with the same augmentation, if the numbers of ranks
    and workers and the buffer are those of the checkpoint. Otherwise the rest of that epoch comes in another order:
    some samples repeat, some are missed, and a line says so. A stream cannot be entered in its middle: the shards from
    which the shuffle buffer still needs samples are read again from their start, but what was given is not decoded.

    Args:
        root: A folder, an address of fsspec (`s3://bucket/imagenet`, ...), `http(s)://...`, or a command such as
            `pipe:aws s3 cp s3://bucket/imagenet/{} -`, in which `{}` stands for the file's name.
        shuffle_buffer: Number of samples, still encoded, from which each worker draws the next one (2,048 of ImageNet
            take 230 MB).
        num_classes: `None` = what `_info.json` says (`lookupvit make-shards` writes it; timm's has none).
        train_split: Name of the training shards in `_info.json`.
        val_split: Name of the validation shards; `None` = `validation`, or else `val`.
        test_split: Name of the test shards; `None` = `test` where it exists, or else the validation shards.
        kwargs: As for `ImageFolderDataModule`, but for `cache` and `val_fraction`.

    Raises:
        ValueError, FileNotFoundError: One line that names the address or option, what was found and what to do.
    """

    def __init__(
        self,
        root: str,
        shuffle_buffer: int = 2048,
        num_classes: int | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        **kwargs: Any,
    ) -> None:
        splits = {"train_split": train_split, "val_split": val_split, "test_split": test_split}
        super().__init__(root, num_classes=num_classes, **splits, **kwargs)
        if given := [name for name in _OF_FOLDERS if getattr(self, name)]:
            raise ValueError(f"data.{given[0]} does not work with streamed shards: unset it")
        if shuffle_buffer < 1:
            raise ValueError(f"data.shuffle_buffer must be at least 1, got {shuffle_buffer}")
        self.url, self.shuffle_buffer = root if is_address(root) else str(self.root), shuffle_buffer
        self._info: dict[str, Any] | None = None
        self._shards: dict[str, Shards] = {}
        self._streams: dict[str, StreamedImages] = {}

    @property
    def info(self) -> dict[str, Any]:
        """`_info.json`."""
        if self._info is None:
            self._info = read_info(self.url)
        return self._info

    @property
    def classes(self) -> list[str]:
        """Class folders as `make-shards` noted them; ImageNet-1k's wnids where there are 1000 classes; else empty."""
        if self._info is None and self.predict_path is not None and self._num_classes is not None:
            return imagenet_wnids() if self._num_classes == 1000 else []  # prediction needs no shards
        names = self.info.get("classes")
        if not isinstance(names, Sequence):
            return imagenet_wnids() if self._num_classes == 1000 else []
        return [str(name) for name in names]

    @property
    def num_classes(self) -> int:
        """The number given, else that of `_info.json`."""
        if self._num_classes is not None:
            return self._num_classes
        if not self.classes:
            raise ValueError(
                f"{shard_url(self.url, INFO)!r} does not say how many classes there are: set data.num_classes"
            )
        return len(self.classes)

    @property
    def class_names(self) -> list[str]:
        """Readable class names, in the order of the indices; empty where they are not known."""
        return readable_names(self.classes)

    def setup(self, stage: str | None = None) -> None:
        """Read `_info.json`; the shards themselves are opened when they are read."""
        if stage == "predict":
            super().setup(stage)
            return
        known = self.info.get("classes")
        if isinstance(known, Sequence) and self.num_classes != len(known):
            raise ValueError(
                f"data.num_classes is {self.num_classes}, but {shard_url(self.url, INFO)!r} has {len(known)} classes; "
                f"set data.num_classes={len(known)} or check data.root"
            )
        splits = self.info["splits"]
        val = self.val_split or ("validation" if "validation" in splits or "val" not in splits else "val")
        test = self.test_split or ("test" if "test" in splits else val)
        names = {"train": self.train_split, "val": val, "test": test}
        for name in SPLITS_OF_STAGE[stage]:
            self._shards[name] = read_split(self.url, self.info, names[name])

    def _loader(self, name: str, training: bool = False) -> DataLoader:
        if name == "predict":
            return super()._loader(name)
        split = "train" if name == "bank" else name
        if split not in self._shards:
            self.setup(STAGE_OF_SPLIT.get(split, split))
        shards, trainer, options = self._shards[split], self.trainer, self._worker_options
        ranks, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        batch_size = self.batch_size if training else self.val_batch_size
        shuffled = {"buffer": self.shuffle_buffer, "drop_last": self.drop_last} if training else {}
        plan = Plan(shards.lengths, batch_size, ranks, run_seed(), **shuffled)
        if plan.batches < 1:
            raise ValueError(
                f"{len(shards)} images in the shards of {split!r} on {ranks} device(s) do not fill one batch of "
                f"{batch_size}; set a smaller data.{'' if training else 'val_'}batch_size, or fewer devices"
            )
        pipeline = self.pipeline(training)
        dataset = StreamedImages(shards, plan, rank, pipeline.sample, self.num_classes, self.skip_corrupt)
        self._streams[name] = dataset
        mixed = mixing(self.options) | {"num_classes": self.num_classes} if training else {}
        return ResumableLoader(
            dataset,
            batch_size=None,  # the data set gives whole batches
            sampler=StreamSampler(plan, rank, options["num_workers"]),
            collate_fn=SeededCollate(Collate(**mixed, pipeline=pipeline), plan.seed),
            generator=torch.Generator(),  # otherwise each epoch would draw its workers' seed from the model's generator
            **options,
        )

    def bank_dataloader(self) -> DataLoader:
        """The training images in the order of the shards, prepared as for evaluation."""
        return self._loader("bank")

    def teardown(self, stage: str | None = None) -> None:
        """Say how many corrupt images were left out, if any."""
        super().teardown(stage)
        for name, dataset in self._streams.items():
            if left_out := int(dataset.left_out):
                warnings.warn(f"{left_out} corrupt images of shards were left out of {name}", stacklevel=2)
