"""Semantic segmentation, step by step: a class for each pixel, at one or many compressed sizes.

Letters: B batch, (Y, X) pixels, (h, w) cells of the map, C classes.
"""

from math import prod
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn

from datamodules.loading.resumable import run_seed
from lookupvit.callbacks.answers.segmentation import SegmentationPictures, SegmentationWriter
from lookupvit.checkpoints.pixels import Pixels
from lookupvit.grid import check_compressed_size, grid_of
from lookupvit.interop.encoder import load_encoder
from lookupvit.metrics.segmentation import SegmentationScores
from lookupvit.model.dense.inference import View, segment_batch
from lookupvit.model.dense.segmenter import Segmenter, stride_of
from lookupvit.tasks.base import Task, check
from lookupvit.tasks.losses import distillation_loss, segmentation_loss
from lookupvit.tasks.sampling import Size, sizes_of_step
from lookupvit.tasks.scores import STAGES, new_samples
from lookupvit.tasks.sizes import budgeted_size, keep_sizes, plan_sizes, sizes_of_checkpoint
from lookupvit.tasks.starting import freeze_layers, resize_loaded_positions


class SegmentationTask(Task):
    """Trains and tests a segmenter: LookupViT's lookup tokens, or a ViT's tokens, and a head.

    Batches are `{"images": (B, 3, Y, X), normalised, "masks": classes (B, Y, X), 255 where a pixel does not count,
    "sizes": (B, 2), height and width without the padding at the bottom and on the right, "files": names}`; batches of
    `predict` have no masks, and may have `"original_sizes"`: (B, 2), the size of each image file.

    In evaluation each image is seen without its padding. With `compressed_sizes` each training step draws one of them,
    from (seed, step) alone, and evaluation reports every one of them in one pass over the data.

    Logged: `train/loss`; `train/compressed_tokens` where sizes are drawn; `val/loss`, `val/miou`, `val/pixel_accuracy`,
    `val/class_accuracy`, and the intersection over union of each class as `val/iou_NAME`; for every further size
    `val/miou@6x8` and so on; `test/...` likewise.

    Args:
        name: Backbone, one of `lookupvit.list_models()`, of images.
        num_classes: Number of classes; the command line takes it, and the image size, from the data.
        img_size: Size that the positions are stored for, an int or (height, width) in pixels; None: the backbone's own.
        compressed_size: Compressed grid (rows, columns) of a LookupViT; `{"stride": 64}` for one token per 64 pixels
            along each axis of any image; None: the largest of `compressed_sizes`, or the backbone's own.
        compressed_sizes: Sizes of multi-resolution training; None trains at `compressed_size` alone.
        size_weights: How often each of `compressed_sizes` is drawn, relative to the others; None: equally often.
        eval_compressed_sizes: Sizes to evaluate; None: `compressed_sizes`, or `compressed_size` alone.
        sandwich: Train at the largest, the smallest and one size between in every step (about three times the work).
        distill_weight: With `sandwich`, the share of the smaller sizes' loss that compares them with the largest.
        budget_gmacs: Instead of `compressed_size`: the largest size that costs at most this many GMACs per image of
            `img_size`, the head counted. For a checkpoint, only the sizes that it was trained at are considered.
        budget_ms: For `validate`, `test` and `predict`: likewise, within so many milliseconds per call with one image.
        untrained_sizes: Let a budget choose a size that the checkpoint was not trained at.
        head: `"linear"` (BatchNorm and 1x1), `"mask_transformer"` (Segmenter's), or `"compressed_queries"`, see
            `lookupvit/model/dense/heads.py`.
        head_args: Further arguments of the head, such as `{"depth": 2}`.
        fuse_compressed: Resize the compressed tokens to the lookup grid and add them to the map.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from the first.
        args: Further arguments of `lookupvit.create_model`, such as `{"patch_size": 8}`.
        class_weights: Weight of each class in the cross-entropy; None: equal.
        dice_weight: Weight of a soft Dice loss, which is added.
        ignore_index: Class of the pixels that do not count.
        eval_mode: `"whole"` sees an image at once, `"slide"` through windows, whose logits are averaged.
        eval_window: Window of `"slide"` in pixels, an int or (height, width); None: `img_size`.
        eval_stride: Distance between windows; None: two thirds of the window.
        eval_flip: Average with the logits of the mirror image.
        eval_scales: Average over factors on the size of the image.
        init_from: Backbone's first weights: a classifier's or segmenter's checkpoint, or what a classifier's takes.
        freeze: Number of layers that do not learn, from below; `"backbone"`: all but the head (DINOv3's protocol).
        pictures: Validation images shown in the loggers beside truth and prediction; 0: none.
        **options: Options of `Task`: optimiser, schedule, moving average, compilation.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    prediction_writer = SegmentationWriter
    monitor = ("val/miou", "max")

    def __init__(
        self,
        name: str,
        num_classes: int,
        img_size: int | tuple[int, int] | None = None,
        *,
        compressed_size: tuple[int, int] | dict[str, int] | None = None,
        compressed_sizes: list[list[int]] | None = None,
        size_weights: list[float] | None = None,
        eval_compressed_sizes: list[list[int]] | None = None,
        sandwich: bool = False,
        distill_weight: float = 0.5,
        budget_gmacs: float | None = None,
        budget_ms: float | None = None,
        untrained_sizes: bool = False,
        head: str = "linear",
        head_args: dict[str, Any] | None = None,
        fuse_compressed: bool = False,
        drop_path_rate: float = 0.0,
        args: dict[str, Any] | None = None,
        class_weights: list[float] | None = None,
        dice_weight: float = 0.0,
        ignore_index: int = 255,
        eval_mode: str = "whole",
        eval_window: int | tuple[int, int] | None = None,
        eval_stride: int | tuple[int, int] | None = None,
        eval_flip: bool = False,
        eval_scales: list[float] | tuple[float, ...] = (1.0,),
        init_from: str | None = None,
        freeze: int | str = 0,
        pictures: int = 6,
        **options,
    ) -> None:
        check(0 <= distill_weight <= 1, f"distill_weight {distill_weight} is not in [0, 1]")
        check(dice_weight >= 0, f"dice_weight {dice_weight} is negative: 0 leaves it out")
        super().__init__(**options)
        self.save_hyperparameters()
        self.init_from, self.size_weights, self.pictures = init_from, size_weights, pictures
        self.sandwich, self.distill_weight, self.dice_weight = sandwich, distill_weight, dice_weight
        self.ignore_index = ignore_index
        fixed = None if stride_of(compressed_size) is not None else compressed_size
        check(
            fixed is compressed_size or compressed_sizes is None,
            f"compressed_size {compressed_size} follows the image, compressed_sizes do not: give one of them",
        )
        sizes = plan_sizes(name, fixed, compressed_sizes, size_weights, eval_compressed_sizes, sandwich)
        self.compressed_size, self.compressed_sizes, self.eval_sizes = sizes
        self.trained_sizes: list[Size] | None = None  # those of the checkpoint that was loaded
        self.model = Segmenter(
            name,
            num_classes,
            img_size,
            compressed_size=self.compressed_size if fixed is compressed_size else compressed_size,
            head=head,
            head_args=head_args,
            fuse_compressed=fuse_compressed,
            drop_path_rate=drop_path_rate,
            args=args,
        )
        check(
            class_weights is None or len(class_weights) == num_classes,
            f"class_weights has {len(class_weights or ())} entries for {num_classes} classes: give one for each",
        )
        self.register_buffer("class_weights", None, persistent=False)
        if class_weights is not None:
            self.class_weights = torch.tensor(class_weights, dtype=torch.float32)
        self.view = View.of(eval_mode, eval_window, eval_stride, eval_flip, eval_scales)
        candidates = None if untrained_sizes else self.compressed_sizes
        if (size := budgeted_size(self.model, budget_gmacs, budget_ms, candidates)) is not None:
            self._use_size(size)
        for size in [*self.eval_sizes, *(self.compressed_sizes or [])]:
            check_compressed_size(size, grid_of(self.model.img_size, self.model.patch_size))
        freeze_layers(self.model, freeze)
        self._note_decayed()
        self._maps = self.model.forward_maps
        self._build_scores()

    def _use_size(self, size: Size) -> None:
        """Runs at this compressed size from now on, whatever the size of the image."""
        self.compressed_size = self.model.compressed_size = size
        self.model.features.compressed_stride = None

    def _build_scores(self) -> None:
        what = (self.compressed_size, self.eval_sizes, self.model.num_classes, self.ignore_index)
        self.scores = nn.ModuleDict({stage: SegmentationScores(stage, *what) for stage in STAGES}).to(self.device)

    def setup(self, stage: str) -> None:
        """Reads the backbone's first weights where training starts, and compiles the model in this process."""
        self._refuse_timed_budget(stage)
        if stage == "fit" and self.init_from is not None:
            pixels = Pixels.of_data(getattr(self._trainer, "datamodule", None))
            if line := load_encoder(self.model.backbone, self.init_from, pixels, verbose=rank_zero_only.rank == 0):
                rank_zero_info(line)
        if self.compile_model:
            self._maps = torch.compile(self.model.forward_maps, dynamic=False)

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks of `Task`, and in training the pictures of predictions."""
        shown = self.pictures > 0 and self.trainer.state.fn == "fit"
        return [*super().configure_callbacks(), *([SegmentationPictures(self.pictures)] if shown else [])]

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C, Y, X)` of whole images `(B, 3, Y, X)`."""
        return self.model(images, self.compressed_size)

    # -- training ------------------------------------------------------------------------------------------------------

    def training_sizes(self, step: int) -> list[Size | None]:
        """Compressed sizes of the training step `step`; with the sandwich rule the largest comes first."""
        sizes = self.compressed_sizes or [self.compressed_size]
        return sizes_of_step(sizes, self.size_weights, run_seed(), step, self.sandwich)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The loss; over several sizes the mean of theirs, where all but the largest learn from that one, too."""
        images, masks = batch["images"], batch["masks"]
        sizes = self.training_sizes(self.global_step)
        largest, *others = self._maps(images, sizes)
        loss = self._loss(largest, masks)
        if others:
            self.log("train/loss_largest", loss.detach(), batch_size=len(images))
            teacher, share = _cells(largest.detach()), self.distill_weight
            for logits, role in zip(others, ("smallest", "between"), strict=False):
                own = (1 - share) * self._loss(logits, masks) + share * distillation_loss(_cells(logits), teacher)
                self.log(f"train/loss_{role}", own.detach(), batch_size=len(images))
                loss = loss + own
            loss = loss / len(sizes)
        elif self.compressed_sizes is not None:
            self.log("train/compressed_tokens", float(prod(sizes[0])), batch_size=len(images))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def _loss(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Loss of the logits of cells `(B, C, h, w)`, or of pixels, against classes `(B, Y, X)`."""
        if logits.shape[2:] != masks.shape[1:]:
            logits = self.model.to_pixels(logits.float(), masks.shape[1:])
        return segmentation_loss(logits, masks, self.ignore_index, self.class_weights, self.dice_weight)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Updates the metrics `val/...`."""
        return self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Updates the metrics `test/...`."""
        return self._evaluate(batch, batch_idx, "test", self.trainer.test_dataloaders)

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, stage: str, loader: Any) -> dict[str, Any]:
        scores, predicted = self.scores[stage], {}
        new = new_samples(loader, batch_idx, len(batch["images"]), self.trainer.global_rank)
        for places, by_size in segment_batch(self.model, batch, scores.evaluated, self.view, new):
            masks = batch["masks"][places, : by_size[0].shape[2], : by_size[0].shape[3]]
            pixels = int((masks != self.ignore_index).sum())
            for size, logits in zip(scores.evaluated, by_size, strict=True):
                classes = logits.argmax(dim=1)
                scores.update(size, classes, masks, self._loss(logits, masks), pixels)
                if size == scores.main:
                    predicted |= dict(zip(places, classes, strict=True))
        return {"masks": [predicted[place] for place in sorted(predicted)]}

    def on_validation_epoch_end(self) -> None:
        """Logs the scores over all pixels."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs the scores over all pixels."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        names = self.class_names or getattr(self.trainer.datamodule, "class_names", None)
        for name, value in self.scores[stage].compute(names).items():
            # equal on all ranks already, but Lightning warns unless it may average them
            self.log(name, value, sync_dist=True, prog_bar=name == f"{stage}/miou")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The classes of each file's pixels, `{"files", "masks"}`: `(Y, X)` uint8, or int32 of more than 256 classes.

        A mask has the size of the image file where the batch knows it. A file that could not be read, whose name has an
        `error`, gets None.
        """
        wide = torch.uint8 if self.model.num_classes <= 256 else torch.int32
        targets = batch.get("original_sizes", batch["sizes"]).tolist()
        masks: list[Tensor | None] = [None] * len(targets)
        for places, (logits,) in segment_batch(self.model, batch, [self.compressed_size], self.view):
            for place, one in zip(places, logits, strict=True):
                if hasattr(batch["files"][place], "error"):
                    continue
                if list(one.shape[1:]) != targets[place]:
                    one = nn.functional.interpolate(one[None], size=targets[place], mode="bilinear")[0]
                masks[place] = one.argmax(dim=0).to(wide).cpu()
        return {"files": list(batch["files"]), "masks": masks}

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sizes that were trained, and puts the results of `init_from` and `budget_gmacs` in their place."""
        super().on_save_checkpoint(checkpoint)
        keep_sizes(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of a classifier: chooses the size of a budget, warns of untrained sizes, resizes positions."""
        stage = None if self._trainer is None else self.trainer.state.fn
        if self.model.compressed_size is not None and stage != "fit":
            sizes = [self.model.compressed_size, *(self.eval_sizes if stage in ("validate", "test") else ())]
            contents, size = sizes_of_checkpoint(self, checkpoint, self._checkpoint_name, None, sizes)
            self.trained_sizes = contents.trained_sizes
            if size is not None:
                self._use_size(size)
                self._build_scores()
        super().on_load_checkpoint(checkpoint)
        if stage != "fit":
            resize_loaded_positions(self, checkpoint)


def _cells(logits: Tensor) -> Tensor:
    return logits.float().flatten(2).transpose(1, 2).flatten(0, 1)  # (B, C, h, w) -> (B, C, N) -> (B N, C)
