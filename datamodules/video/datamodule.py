"""What the DataModules of all video data sets share: arguments, transforms, loaders, and the watch over bad files."""

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from datamodules.images.names import readable_names
from datamodules.images.transforms import transform_options
from datamodules.loading.checks import check_arguments
from datamodules.loading.resumable import training_loader
from datamodules.loading.unreadable import read_bad_files
from datamodules.loading.workers import default_workers, leave_signals
from datamodules.video.dataset import BadVideoReport, VideoDataset
from datamodules.video.decode import choose_decoder
from datamodules.video.listing import VideoList, find_videos
from datamodules.video.sampling import FrameSampler
from datamodules.video.transforms import CROPS, CollateVideos, EvalTransform, TrainTransform


class VideoDataModule(LightningDataModule):
    """Base of the DataModules of labelled videos; a subclass says which videos and classes there are.

    Batches of training and validation are ``(clips (B, 3, T, H, W) float, targets (B,) int64)``, of training soft
    ``(B, K)`` with MixUp or CutMix; of test ``(views (B, V, 3, T, H, W), targets (B,), videos (B,))`` with V =
    ``test_clips`` x ``test_crops``, clip by clip, and each video's place in the data set; of prediction
    ``(views (B, V, 3, T, H, W), files)``. Validation takes the middle clip and the centre crop.

    Args:
        root: the folder of the data set.
        num_frames: T, frames of a clip.
        frame_stride: distance of two frames of a clip, in frames of the file.
        clip_seconds: length of a clip in seconds, for videos of many frame rates; replaces ``frame_stride``.
        img_size: pixels, one number or (height, width).
        batch_size: clips per device in training.
        val_batch_size: clips per device in validation; ``None`` = ``batch_size``.
        test_batch_size: videos (of V views each) per device in test and prediction.
        num_workers: loader processes per device; ``None`` = this machine's cores divided by its devices, at most 16.
        short_clip: of a video shorter than a clip, ``repeat`` the last frame or ``loop``.
        decoder: ``auto``, ``pyav`` or ``torchcodec``; auto is TorchCodec where it loads.
        decoder_threads: threads of each worker's decoder.
        test_clips: clips of a video in test and prediction, evenly spaced from its start to its end.
        test_crops: 1 = the centre, 3 = along the longer side.
        crop_pct: in evaluation, the crop's part of the resized frame.
        short_side: fewest and most pixels of the short side before the random crop in training; ``None`` = from 8/7 to
            10/7 of ``img_size`` (256 to 320 for 224).
        scale: area range of a random resized crop, in its place.
        ratio: aspect-ratio range of the random resized crop.
        interpolation: ``bilinear``, ``bicubic``, ...
        hflip: probability of a horizontal flip.
        rand_augment: mapping of ``policy``, ``num_ops``, ``magnitude``, ...; ``false`` switches it off.
        color_jitter: strength of brightness, contrast and saturation jitter, or one each, and a fourth of the hue.
        color_jitter_prob: probability of the colour jitter.
        grayscale_prob: probability of no colour.
        random_erasing: probability of erasing a rectangle.
        mixup: alpha of MixUp; 0 = off.
        cutmix: alpha of CutMix; 0 = off.
        mix_prob: probability that a batch is mixed.
        mean: per-channel mean for the normalisation, of pixels in 0..1.
        std: per-channel standard deviation for the normalisation.
        train_split: name of the training videos.
        val_split: name of the validation videos.
        test_split: name of the test videos; ``None`` = the validation videos.
        predict_path: a video, a folder or a glob to predict on.
        predict_split: name of a split to predict on, which may have no labels.
        num_classes: checked against the data; ``None`` = count.
        exclude: a list of files to leave out, as ``lookupvit check-data`` writes it.
        max_bad_share: part of the videos that may be missing or bad before an error stops the run.
        retries: how many other videos are tried in place of a bad one.
        cache: keep decoded videos in memory (of tiny data sets only).
        persistent_workers: keep the loader processes between epochs.
        prefetch_factor: batches that each worker prepares ahead; ``None`` = torch's default.
        drop_last: leave out the last, smaller batch in training.

    Raises:
        ValueError, FileNotFoundError: one line that names the path or option, what was found and what to do.
    """

    def __init__(
        self,
        root: str,
        num_frames: int = 32,
        frame_stride: int = 2,
        clip_seconds: float | None = None,
        img_size: int | tuple[int, int] = 224,
        batch_size: int = 8,
        val_batch_size: int | None = None,
        test_batch_size: int = 1,
        num_workers: int | None = None,
        short_clip: str = "repeat",
        decoder: str = "auto",
        decoder_threads: int = 1,
        test_clips: int = 4,
        test_crops: int = 3,
        crop_pct: float = 0.875,
        short_side: tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] | None = None,
        interpolation: str = "bilinear",
        hflip: float = 0.5,
        rand_augment: dict | bool | None = None,
        color_jitter: float | tuple[float, ...] | None = None,
        color_jitter_prob: float | None = None,
        grayscale_prob: float | None = None,
        random_erasing: float | None = None,
        mixup: float | None = None,
        cutmix: float | None = None,
        mix_prob: float | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        train_split: str = "train",
        val_split: str = "val",
        test_split: str | None = None,
        predict_path: str | None = None,
        predict_split: str | None = None,
        num_classes: int | None = None,
        exclude: str | None = None,
        max_bad_share: float = 0.1,
        retries: int = 10,
        cache: bool = False,
        persistent_workers: bool = True,
        prefetch_factor: int | None = None,
        drop_last: bool = True,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        self.num_frames = num_frames
        self.sampler = FrameSampler(num_frames, frame_stride, clip_seconds, short_clip)
        self.batch_size, self.val_batch_size = batch_size, batch_size if val_batch_size is None else val_batch_size
        self.test_batch_size = test_batch_size
        self.num_workers, self.prefetch_factor = num_workers, prefetch_factor
        self.persistent_workers, self.drop_last = persistent_workers, drop_last
        self.test_clips, self.test_crops = test_clips, test_crops
        crop = {"scale": scale, "ratio": ratio, "interpolation": interpolation, "crop_pct": crop_pct}
        change = {"hflip": hflip, "rand_augment": rand_augment, "color_jitter": color_jitter}
        change |= {"color_jitter_prob": color_jitter_prob, "grayscale_prob": grayscale_prob}
        mix = {"random_erasing": random_erasing, "mixup": mixup, "cutmix": cutmix, "mix_prob": mix_prob}
        self.options = transform_options("light", **crop, **change, **mix, mean=mean, std=std)
        self.mean, self.std = self.options["mean"], self.options["std"]
        if scale is not None and short_side is not None:
            raise ValueError("data.scale and data.short_side are two kinds of random crop: give one of them")
        side = min(self.img_size)
        jitter = (round(side * 256 / 224), round(side * 320 / 224))
        self.short_side = None if scale is not None else tuple(short_side or jitter)
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.predict_path, self.predict_split, self.exclude = predict_path, predict_split, exclude
        self.reading = {"decoder": decoder, "threads": decoder_threads, "retries": retries}
        self.reading |= {"max_bad_share": max_bad_share, "cache": cache}
        self._num_classes = num_classes
        self._datasets: dict[str, VideoDataset] = {}
        self._check_arguments()

    def _check_arguments(self) -> None:
        check_arguments(self, dict.fromkeys(("batch_size", "val_batch_size", "test_batch_size", "test_clips"), 1))
        if self.test_crops not in CROPS:
            raise ValueError(f"data.test_crops is 1 (the centre) or 3 (along the longer side), got {self.test_crops}")
        low, high = self.short_side or (side := min(self.img_size), side)
        if not min(self.img_size) <= low <= high:
            raise ValueError(
                f"data.short_side {self.short_side} must be two numbers of pixels, the smaller first, and no smaller "
                f"than data.img_size {self.img_size}"
            )
        for name in ("max_bad_share", "retries", "threads"):
            if self.reading[name] < 0:
                raise ValueError(f"data.{name} must not be negative, got {self.reading[name]}")
        choose_decoder(self.reading["decoder"])

    # -- what a subclass says ----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their indices."""

    @abstractmethod
    def list_split(self, split: str) -> VideoList:
        """The videos of one split.

        Raises:
            ValueError, FileNotFoundError: the data set is not what it must be.
        """

    # -- data sets ---------------------------------------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """The number given, else the number of classes of the data set."""
        return len(self.classes) if self._num_classes is None else self._num_classes

    @property
    def class_names(self) -> list[str]:
        """Readable class names, in the order of the indices."""
        return readable_names(self.classes)

    def setup(self, stage: str | None = None) -> None:
        """Check the data set and list its files.

        Args:
            stage: ``fit``, ``validate``, ``test``, ``predict``, or ``None`` for all but ``predict``.

        Raises:
            ValueError, FileNotFoundError: the data set is not what it must be.
        """
        if self.trainer is not None and not any(isinstance(each, BadVideoReport) for each in self.trainer.callbacks):
            self.trainer.callbacks.append(BadVideoReport(self._datasets))
        if stage == "predict":
            self._datasets["predict"] = self._predict_dataset()
            return
        if self._num_classes not in (None, len(self.classes)):
            raise ValueError(
                f"data.num_classes is {self._num_classes}, but {str(self.root)!r} has {len(self.classes)} classes "
                f"({', '.join(self.classes[:3])}, ...); set data.num_classes={len(self.classes)} or check data.root"
            )
        splits = {"train": self.train_split, "val": self.val_split, "test": self.test_split or self.val_split}
        needed = {None: ("train", "val", "test"), "fit": ("train", "val"), "validate": ("val",), "test": ("test",)}
        for name in needed[stage]:
            if name not in self._datasets:
                self._datasets[name] = self._dataset(name, splits[name])

    def _dataset(self, name: str, split: str) -> VideoDataset:
        videos = self._kept(split)
        if None in videos.targets:
            raise ValueError(
                f"the videos of split {split!r} in {str(self.root)!r} have no labels: predict on them with "
                f"data.predict_split={split}, or name another split with data.{name}_split"
            )
        return self._read(name, list(zip(videos.paths, videos.targets, strict=True)))

    def _predict_dataset(self) -> VideoDataset:
        if (self.predict_path is None) == (self.predict_split is None):
            raise ValueError("predict needs videos: set data.predict_path (video, folder, glob) or data.predict_split")
        if self.predict_path:
            paths = find_videos(self.predict_path)
        else:
            videos = self._listed(self.predict_split)
            paths = [*videos.paths, *videos.missing]  # a file that is not there has its row, too
        if not paths:
            raise ValueError(f"no videos in split {self.predict_split!r} of {str(self.root)!r}; check data.root")
        return self._read("predict", [(path, path) for path in paths])

    def _read(self, name: str, samples: list[tuple[str, Any]]) -> VideoDataset:
        if name == "train":
            transform = TrainTransform(self.img_size, self.options, self.short_side)
        else:
            transform = EvalTransform(self.img_size, self.options, 1 if name == "val" else self.test_crops)
        return VideoDataset(samples, self.sampler, transform, name, self.test_clips, **self.reading)

    def _listed(self, split: str) -> VideoList:
        videos = self.list_split(split)
        return videos if self.exclude is None else videos.without(read_bad_files(self.exclude, self.root))

    def _kept(self, split: str) -> VideoList:
        return self._listed(split).check(f"split {split!r} in {str(self.root)!r}", self.reading["max_bad_share"])

    # -- loaders -----------------------------------------------------------------------------------------------------

    def _loader(self, name: str) -> DataLoader:
        if name not in self._datasets:
            self.setup({"train": "fit", "val": "validate"}.get(name, name))
        dataset, training = self._datasets[name], name == "train"
        workers = default_workers(self.trainer) if self.num_workers is None else self.num_workers
        options = {
            "num_workers": workers,
            "persistent_workers": self.persistent_workers and workers > 0,
            "prefetch_factor": self.prefetch_factor if workers > 0 else None,
        }
        if training:
            mixing = {
                "mixup": self.options["mixup"],
                "cutmix": self.options["cutmix"],
                "prob": self.options["mix_prob"],
            }
            options |= {"trainer": self.trainer, "drop_last": self.drop_last, "what": "videos"}
            return training_loader(dataset, self.batch_size, CollateVideos(self.num_classes, **mixing), **options)
        return DataLoader(
            dataset,
            batch_size=self.val_batch_size if name == "val" else self.test_batch_size,
            collate_fn=CollateVideos(),
            worker_init_fn=leave_signals,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches ``(clips (B, 3, T, H, W), targets (B,) or soft (B, K))``."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Batches ``(clips (B, 3, T, H, W), targets (B,))`` in the order of the list."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches ``(views (B, V, 3, T, H, W), targets (B,), videos (B,))`` in the order of the list."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches ``(views (B, V, 3, T, H, W), files)``; views of an `Unreadable` file are blank."""
        return self._loader("predict")
