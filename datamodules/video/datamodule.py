"""What the DataModules of all video data sets share: arguments, transforms, loaders and the report on bad files."""

from abc import abstractmethod
from typing import Any

from torch.utils.data import DataLoader

from datamodules.images.base import AugmentedDataModule
from datamodules.images.collate import mixing
from datamodules.images.names import NumberedClasses
from datamodules.loading.datamodule import SPLITS_OF_STAGE
from datamodules.video.dataset import BadVideoReport, VideoDataset
from datamodules.video.decode import choose_decoder
from datamodules.video.listing import VideoList, find_videos
from datamodules.video.sampling import FrameSampler
from datamodules.video.transforms import CROPS, CollateVideos, EvalTransform, TrainTransform


class VideoDataModule(NumberedClasses, AugmentedDataModule):
    """Base of the DataModules of labelled videos; a subclass says which videos and classes there are.

    Batches of training and validation are `(clips (B, 3, T, H, W) float, targets (B,) int64)`; with MixUp or CutMix the
    training targets are soft, `(B, K)`. Batches of test are `(views (B, V, 3, T, H, W), targets (B,), videos (B,))`
    with V = `test_clips` x `test_crops`, clip by clip, and each video's place in the data set. Batches of prediction
    are `(views (B, V, 3, T, H, W), files)`. Validation takes the middle clip and the centre crop. Without `test_split`,
    the test videos are the validation videos.

    Args:
        root: The folder of the data set.
        num_frames: T, frames of a clip.
        frame_stride: Distance of two frames of a clip, in frames of the file.
        clip_seconds: Length of a clip in seconds, for videos of many frame rates; replaces `frame_stride`.
        batch_size: Clips per device in training.
        test_batch_size: Videos (of V views each) per device in test and prediction.
        short_clip: For a video shorter than a clip, `repeat` the last frame or `loop`.
        decoder: `auto`, `pyav` or `torchcodec`; auto is TorchCodec where it loads.
        decoder_threads: Threads of each worker's decoder.
        test_clips: Clips of a video in test and prediction, evenly spaced from its start to its end.
        test_crops: 1 = the centre, 3 = along the longer side.
        crop_pct: In evaluation, the crop's part of the resized frame.
        short_side: Fewest and most pixels of the short side before the random crop in training; `None` = from 8/7 to
            10/7 of `img_size` (256 to 320 for 224).
        scale: Area range of a random resized crop, which then replaces the random crop of `short_side`.
        interpolation: `bilinear`, `bicubic`, ...
        hflip: Probability of a horizontal flip.
        color_jitter_prob: Probability of the colour jitter.
        grayscale_prob: Probability that all colour is removed.
        predict_split: Name of a split to predict on, which may have no labels.
        num_classes: Checked against the data; `None` = count.
        max_bad_share: Part of the videos that may be missing or bad before an error stops the run.
        retries: How many other videos are tried in place of a bad one.
        cache: Keep decoded videos in memory (of tiny data sets only).
        kwargs: As for `AugmentedDataModule`; an option left at `None` there takes the value of the recipe `light`.

    Raises:
        ValueError, FileNotFoundError: One line that names the path or option, what was found and what to do.
    """

    samples_are = "videos"

    def __init__(
        self,
        root: str,
        num_frames: int = 32,
        frame_stride: int = 2,
        clip_seconds: float | None = None,
        batch_size: int = 8,
        test_batch_size: int = 1,
        short_clip: str = "repeat",
        decoder: str = "auto",
        decoder_threads: int = 1,
        test_clips: int = 4,
        test_crops: int = 3,
        crop_pct: float = 0.875,
        short_side: tuple[int, int] | None = None,
        scale: tuple[float, float] | None = None,
        interpolation: str = "bilinear",
        hflip: float = 0.5,
        color_jitter_prob: float | None = None,
        grayscale_prob: float | None = None,
        predict_split: str | None = None,
        num_classes: int | None = None,
        max_bad_share: float = 0.1,
        retries: int = 10,
        cache: bool = False,
        **kwargs: Any,
    ) -> None:
        crop = {"scale": scale, "interpolation": interpolation, "hflip": hflip, "crop_pct": crop_pct}
        super().__init__(root, batch_size=batch_size, **crop, **kwargs)
        self._set_options("light", color_jitter_prob=color_jitter_prob, grayscale_prob=grayscale_prob)
        self.num_frames = num_frames
        self.sampler = FrameSampler(num_frames, frame_stride, clip_seconds, short_clip)
        self.test_batch_size, self.test_clips, self.test_crops = test_batch_size, test_clips, test_crops
        if scale is not None and short_side is not None:
            raise ValueError("data.scale and data.short_side are two kinds of random crop: give one of them")
        side = min(self.img_size)
        jitter = (round(side * 256 / 224), round(side * 320 / 224))
        self.short_side = None if scale is not None else tuple(short_side or jitter)
        self.predict_split, self._num_classes = predict_split, num_classes
        self.reading = {"decoder": decoder, "threads": decoder_threads, "retries": retries}
        self.reading |= {"max_bad_share": max_bad_share, "cache": cache}
        self._check_arguments()

    def _check_arguments(self) -> None:
        self._check_at_least(1, "test_batch_size", "test_clips")
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
            ValueError, FileNotFoundError: The data set is not what it must be.
        """

    # -- data sets ---------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Check the data set and list its files.

        Args:
            stage: `fit`, `validate`, `test`, `predict`, or `None` for all but `predict`.

        Raises:
            ValueError, FileNotFoundError: The data set is not what it must be.
        """
        if self.trainer is not None and not any(isinstance(each, BadVideoReport) for each in self.trainer.callbacks):
            self.trainer.callbacks.append(BadVideoReport(self._datasets))
        if stage == "predict" and self._has_no_part_in_prediction:
            return
        if stage == "predict":
            self._datasets["predict"] = self._predict_dataset()
            return
        self.check_num_classes(self.root)
        splits = {"train": self.train_split, "val": self.val_split, "test": self.test_split or self.val_split}
        for name in SPLITS_OF_STAGE[stage]:
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
            paths = [*videos.paths, *videos.missing]  # a missing file has its row, too
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
        return self.list_split(split).without(self.excluded)

    def _kept(self, split: str) -> VideoList:
        return self._listed(split).check(f"split {split!r} in {str(self.root)!r}", self.reading["max_bad_share"])

    # -- loaders -----------------------------------------------------------------------------------------------------

    def _loader(self, name: str) -> DataLoader:
        dataset = self.dataset(name)
        if name == "train":
            return self._training_loader(dataset, CollateVideos(self.num_classes, **mixing(self.options)))
        return self._evaluation_loader(dataset, CollateVideos(), None if name == "val" else self.test_batch_size)

    def train_dataloader(self) -> DataLoader:
        """Shuffled, augmented batches `(clips (B, 3, T, H, W), targets (B,) or soft (B, K))`."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """Batches `(clips (B, 3, T, H, W), targets (B,))` in the order of the list."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader:
        """Batches `(views (B, V, 3, T, H, W), targets (B,), videos (B,))` in the order of the list."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader:
        """Batches `(views (B, V, 3, T, H, W), files)`; views of an `Unreadable` file are blank."""
        return self._loader("predict")
