"""Object detection and instance masks, step by step, at one or many compressed sizes.

Letters: n objects of an image, (Y, X) pixels.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor, nn

from datamodules.loading.resumable import run_seed
from lookupvit.analysis.detector_cost import regions_counted
from lookupvit.callbacks.answers.detections import DetectionPictures, DetectionWriter
from lookupvit.checkpoints.pixels import Pixels
from lookupvit.grid import check_compressed_size, grid_of, size_name
from lookupvit.interop.encoder import load_encoder
from lookupvit.metrics.detection import DetectionScores, at_original_size, original_sizes
from lookupvit.model.dense.detector import Detector
from lookupvit.model.dense.segmenter import stride_of
from lookupvit.tasks.base import Task, check
from lookupvit.tasks.sampling import Size, sizes_of_step
from lookupvit.tasks.scores import STAGES, new_samples
from lookupvit.tasks.sizes import budgeted_size, keep_sizes, plan_sizes, sizes_of_checkpoint
from lookupvit.tasks.starting import freeze_layers, resize_loaded_positions

CATEGORY_IDS = "category_ids"  # the key of a checkpoint


class DetectionTask(Task):
    """Trains and tests a detector: LookupViT's lookup tokens, or a ViT's tokens, a feature pyramid, and its heads.

    Batches are `{"images": [(3, Y, X), ...], "targets": [{...}, ...], "files": names}`: normalised images of any sizes;
    targets with `boxes (n, 4)` (x1, y1, x2, y2) in pixels of the image, `labels (n,)` from 1, `masks (n, Y, X)`,
    `iscrowd (n,)`, `area (n,)` and, in evaluation, `orig_size (2,)`, (height, width) of the file. Batches of `predict`
    have targets with nothing but `orig_size`.

    Average precision is that of COCO, at the size of the files. With `compressed_sizes` each training step draws one
    of them, from (seed, step) alone, and evaluation reports every one of them in one pass over the data.

    Logged: `train/loss`, and each of torchvision's losses, such as `train/loss_box_reg`; `train/compressed_tokens`
    where sizes are drawn; `val/ap`, `val/ap50`, `val/ap75`, `val/ap_small`, `val/ap_medium`, `val/ap_large` and
    `val/ar` of boxes, and `val/mask_ap` and so on of masks, each from 0 to 1; for every size that is evaluated
    `val/ap@5x5` and so on; `test/...` likewise. Losses of the validation data are not computed: torchvision's
    detectors give them in training alone.

    Args:
        name: Backbone, one of `lookupvit.list_models()`, of images.
        num_classes: Number of classes without the background; the command line takes it, and the image size, from the
            data.
        img_size: Size that the positions are stored for, and that smaller images are padded to, an int or (height,
            width); it is rounded up to a multiple of the pyramid's coarsest stride. None: the backbone's own.
        detector: `"mask_rcnn"`, `"faster_rcnn"` or `"fcos"`, torchvision's, see `Detector`.
        compressed_size: Compressed grid (rows, columns) of a LookupViT; `{"stride": 64}` for one token per 64 pixels
            along each axis of the padded images; None: the largest of `compressed_sizes`, or the backbone's own.
        compressed_sizes: Sizes of multi-resolution training; None trains at `compressed_size` alone.
        size_weights: How often each of `compressed_sizes` is drawn, relative to the others; None: equally often.
        eval_compressed_sizes: Sizes to evaluate; None: `compressed_sizes`, or `compressed_size` alone.
        sandwich: Train at the largest, the smallest and one size between in every step.
        budget_gmacs: Instead of `compressed_size`: the largest size (of a checkpoint: trained size) of at most so many
            GMACs per image of `img_size`, with the heads at 1000 proposals and 100 detections.
        budget_ms: For `validate`, `test` and `predict`: likewise, within so many milliseconds per call with one image.
        untrained_sizes: Let a budget choose a size that the checkpoint was not trained at.
        out_channels: Channels of the pyramid and the heads.
        strides: Strides of the pyramid; None: those of ViTDet, or for FCOS those of FCOS.
        box_convs: Convolutions of the box head.
        box_dim: Width of its linear layer.
        mask_convs: Convolutions of the mask head.
        pad: `"native"` pads images to `img_size`, `"batch"` to the largest of the batch.
        detector_args: Further numbers of torchvision's class, such as `{"box_detections_per_img": 50}`.
        fuse_compressed: Resize the compressed tokens to the lookup grid and add them to the map.
        drop_path_rate: Stochastic depth of the backbone's last block; it grows linearly from the first.
        args: Further arguments of `lookupvit.create_model`, such as `{"patch_size": 8}`.
        max_detections: Detections of an image and class that count for the scores; COCO's is 100.
        init_from: Backbone's first weights: a checkpoint of any task, or what else a classifier's `init_from` takes.
        freeze: Number of layers that do not learn, from below; `"backbone"`: all but pyramid and heads.
        pictures: Validation images shown in the loggers with their objects and detections; 0: none.
        **options: Options of `Task`: optimiser, schedule, moving average, compilation.

    Raises:
        ValueError: If an option has a value that does not fit.
    """

    prediction_writer = DetectionWriter

    monitor = ("val/ap", "max")

    def __init__(
        self,
        name: str,
        num_classes: int,
        img_size: int | tuple[int, int] | None = None,
        *,
        detector: str = "mask_rcnn",
        compressed_size: tuple[int, int] | dict[str, int] | None = None,
        compressed_sizes: list[list[int]] | None = None,
        size_weights: list[float] | None = None,
        eval_compressed_sizes: list[list[int]] | None = None,
        sandwich: bool = False,
        budget_gmacs: float | None = None,
        budget_ms: float | None = None,
        untrained_sizes: bool = False,
        out_channels: int = 256,
        strides: list[int] | None = None,
        box_convs: int = 4,
        box_dim: int = 1024,
        mask_convs: int = 4,
        pad: str = "native",
        detector_args: dict[str, int | float] | None = None,
        fuse_compressed: bool = False,
        drop_path_rate: float = 0.0,
        args: dict[str, Any] | None = None,
        max_detections: int = 100,
        init_from: str | None = None,
        freeze: int | str = 0,
        pictures: int = 6,
        **options,
    ) -> None:
        super().__init__(**options)
        self.save_hyperparameters()
        self.init_from, self.pictures, self.max_detections = init_from, pictures, max_detections
        self.size_weights, self.sandwich = size_weights, sandwich
        fixed = None if stride_of(compressed_size) is not None else compressed_size
        twice = f"compressed_size {compressed_size} follows the image, compressed_sizes do not: give one of them"
        check(fixed is compressed_size or compressed_sizes is None, twice)
        sizes = plan_sizes(name, fixed, compressed_sizes, size_weights, eval_compressed_sizes, sandwich)
        self.compressed_size, self.compressed_sizes, self.eval_sizes = sizes
        self.trained_sizes: list[Size] | None = None  # those of the checkpoint that was loaded
        self.category_ids: list[int] | None = None
        self.model = Detector(
            name,
            num_classes,
            img_size,
            compressed_size=self.compressed_size if fixed is compressed_size else compressed_size,
            detector=detector,
            out_channels=out_channels,
            strides=strides,
            box_convs=box_convs,
            box_dim=box_dim,
            mask_convs=mask_convs,
            pad=pad,
            fuse_compressed=fuse_compressed,
            drop_path_rate=drop_path_rate,
            args=args,
            detector_args=detector_args,
        )
        candidates = None if untrained_sizes else self.compressed_sizes
        if (size := budgeted_size(self.model, budget_gmacs, budget_ms, candidates)) is not None:
            self._use_size(size)
        for size in [*self.eval_sizes, *(self.compressed_sizes or [])]:
            check_compressed_size(size, grid_of(self.model.img_size, self.model.patch_size))
        if freeze == "backbone":
            self.model.features.requires_grad_(False)
        else:
            freeze_layers(self.model, freeze)
        self._note_decayed()
        self._build_scores()

    @property
    def evaluated(self) -> list[Size | None]:
        """Sizes that are scored, the main one first."""
        main = self.model.compressed_size if self.model.features.compressed_stride is None else None
        return [main, *(size for size in self.eval_sizes if size != main)]

    def _use_size(self, size: Size) -> None:
        """Runs at this compressed size from now on, whatever the size of the image."""
        self.compressed_size = self.model.compressed_size = size
        self.model.features.compressed_stride = None

    def _build_scores(self) -> None:
        def scores() -> nn.ModuleList:
            return nn.ModuleList(DetectionScores(self.model.has_masks, self.max_detections) for _ in self.evaluated)

        self.scores = nn.ModuleDict({stage: scores() for stage in STAGES}).to(self.device)

    def setup(self, stage: str) -> None:
        """Reads the backbone's first weights where training starts, and compiles the backbone in this process."""
        self._refuse_timed_budget(stage)
        data = getattr(self._trainer, "datamodule", None)
        check(
            not self.model.has_masks or getattr(data, "masks", True) is not False or stage == "predict",
            "mask_rcnn needs masks, which the data leave out: set --data.masks true, or --model.detector faster_rcnn",
        )
        if stage == "fit" and self.init_from is not None:
            line = load_encoder(self.model.backbone, self.init_from, Pixels.of_data(data), rank_zero_only.rank == 0)
            if line:
                rank_zero_info(line)
        if stage == "fit":
            self.summary_rows = {"heads": f"{self.model.detector}, {regions_counted(self.model)}"}
        if self.compile_model:
            self.model.features.compile(dynamic=False)

    def configure_callbacks(self) -> list[Callback]:
        """The callbacks of `Task`, and in training the pictures of detections."""
        shown = self.pictures > 0 and self.trainer.state.fn == "fit"
        return [*super().configure_callbacks(), *([DetectionPictures(self.pictures)] if shown else [])]

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Detections of images `(3, Y, X)`, see `Detector`; call `eval()` first."""
        return self.model(images, self.compressed_size)

    # -- training ------------------------------------------------------------------------------------------------------

    def training_sizes(self, step: int) -> list[Size | None]:
        """Compressed sizes of the training step `step`; with the sandwich rule the largest comes first."""
        sizes = self.compressed_sizes or [self.compressed_size]
        return sizes_of_step(sizes, self.size_weights, run_seed(), step, self.sandwich)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The sum of torchvision's losses; over several sizes the mean of theirs."""
        images, targets = batch["images"], [_objects(target) for target in batch["targets"]]
        sizes = self.training_sizes(self.global_step)
        found = [self.model(images, size, targets=targets) for size in sizes]
        losses = {name: torch.stack([one[name] for one in found]).mean() for name in found[0]}
        loss = sum(losses.values())
        for name, value in losses.items():
            self.log(f"train/loss_{name.removeprefix('loss_')}", value.detach(), batch_size=len(images))
        if self.compressed_sizes is not None and len(sizes) == 1:
            self.log("train/compressed_tokens", float(prod(sizes[0])), batch_size=len(images))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Updates the metrics `val/...`."""
        return self._evaluate(batch, batch_idx, "val", self.trainer.val_dataloaders)

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Updates the metrics `test/...`."""
        return self._evaluate(batch, batch_idx, "test", self.trainer.test_dataloaders)

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, stage: str, loader: Any) -> dict[str, Any]:
        images = batch["images"]
        targets = [at_original_size(*pair) for pair in zip(batch["targets"], images, strict=True)]
        by_size = self.model.detect_at_sizes(images, self.evaluated, original_sizes(batch))
        new = new_samples(loader, batch_idx, len(images), self.trainer.global_rank)
        for scores, found in zip(self.scores[stage], by_size, strict=True):
            scores.update(found[:new], targets[:new])
        return {"detections": by_size[0], "targets": targets}

    def on_validation_epoch_end(self) -> None:
        """Logs the scores over all images."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Logs the scores over all images."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        for place, (size, scores) in enumerate(zip(self.evaluated, self.scores[stage], strict=True)):
            for name, value in scores.compute().items():
                suffixes = [""] if place == 0 else []
                suffixes += [f"@{size_name(size)}"] if size in self.eval_sizes else []
                for suffix in suffixes:
                    # equal on all ranks already, but Lightning warns unless it may average them
                    shown = name == "ap" and not suffix
                    self.log(f"{stage}/{name}{suffix}", value.to(self.device), sync_dist=True, prog_bar=shown)
            scores.reset()

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Detections of each file, at the file's size: `{"files", "sizes", "detections"}`, see `Detector`."""
        sizes = original_sizes(batch)
        found = self.model(batch["images"], self.compressed_size, output_sizes=sizes)
        return {"files": list(batch["files"]), "sizes": sizes, "detections": found}

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the sizes that were trained and the data's numbers of the classes, for files of results."""
        super().on_save_checkpoint(checkpoint)
        keep_sizes(self, checkpoint)
        if ids := getattr(self.trainer.datamodule, CATEGORY_IDS, None) or self.category_ids:
            checkpoint[CATEGORY_IDS] = [int(number) for number in ids]

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
        ids = checkpoint.get(CATEGORY_IDS)
        self.category_ids = ids if isinstance(ids, list) and all(type(number) is int for number in ids) else None
        if stage != "fit":
            resize_loaded_positions(self, checkpoint)


def _objects(target: dict[str, Any]) -> dict[str, Tensor]:
    """What torchvision's losses take of a target: everything but crowds."""
    crowd = target.get("iscrowd")
    kept = slice(None) if crowd is None else crowd == 0
    return {key: target[key][kept] for key in ("boxes", "labels", "masks") if key in target}
