"""One pass over the data for many compressed sizes (and many models), and what follows from the logits.

Letters: n images, C classes. A size is a compressed grid such as (3, 3); None stands for a model without one (a ViT).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit.grid import Size
from lookupvit.metrics.detection import DetectionScores, at_original_size, original_sizes
from lookupvit.metrics.segmentation import SegmentationMetrics
from lookupvit.model.dense.inference import View, segment_batch


@dataclass(frozen=True)
class Subject:
    """A model in a sweep.

    Attributes:
        model: `LookupViT` or `ViT`, in evaluation mode.
        sizes: Compressed sizes to run it at; `(None,)` for a model that has none.
        head: The head whose logits count; None for the mean of all.
    """

    model: nn.Module
    sizes: tuple[Size | None, ...]
    head: str | None = None


@torch.no_grad()
def logits_at_sizes(
    model: nn.Module, images: Tensor, sizes: Sequence[Size | None], head: str | None = None
) -> dict[Size | None, Tensor]:
    """Logits `(B, C)` by size, of images `(B, 3, H, W)` that are embedded once."""
    if model.compressed_size is None:
        return {size: model(images) for size in sizes}
    lookup, grid = model.embed_images(images)
    return {size: model.forward_head(model.forward_tokens(lookup, grid, size, head)) for size in sizes}


def collect_logits(
    subjects: Mapping[str, Subject],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, dict[Size | None, Tensor]], Tensor]:
    """Runs every model at every size of its own over the same batches, each decoded once.

    Args:
        subjects: Models by label, on `device`.
        batches: `(images (B, 3, H, W), targets (B,))`.
        device: Where the models are.
        advance: Told the number of images of each batch that is done.

    Returns:
        Logits `(n, C)`, float32 on the CPU, by label and size, and the targets `(n,)`.

    Raises:
        ValueError: If there are no images.
    """
    found = {label: {size: [] for size in subject.sizes} for label, subject in subjects.items()}
    targets = []
    for images, labels in batches:
        images = images.to(device, non_blocking=True)
        for label, subject in subjects.items():
            for size, logits in logits_at_sizes(subject.model, images, subject.sizes, subject.head).items():
                found[label][size].append(logits.float().cpu())
        targets.append(labels.cpu())
        advance(len(labels))
    if not targets:
        raise ValueError("there are no images to score: check data.root and --limit")
    joined = {label: {size: torch.cat(parts) for size, parts in by_size.items()} for label, by_size in found.items()}
    return joined, torch.cat(targets)


def collect_scores(
    subjects: Mapping[str, Subject],
    batches: Iterable[Mapping[str, Any]],
    views: Mapping[str, View],
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, dict[Size | None, dict[str, float]]], int]:
    """As `collect_logits`, of segmenters, whose logits are too many to be kept.

    Args:
        subjects: Segmenters by label, on `device`.
        batches: As `lookupvit.tasks.SegmentationTask` takes them.
        views: How each looks at an image.
        device: Where they are.
        advance: Told the number of images of each batch that is done.

    Returns:
        "miou", "pixel_accuracy" and "class_accuracy" in percent, by label and size, and the number of images.

    Raises:
        ValueError: If there are no images.
    """
    metrics = {
        label: {size: SegmentationMetrics(subject.model.num_classes).to(device) for size in subject.sizes}
        for label, subject in subjects.items()
    }
    count = 0
    for batch in batches:
        batch = {**batch, **{key: batch[key].to(device, non_blocking=True) for key in ("images", "masks")}}
        for label, subject in subjects.items():
            with torch.no_grad():
                for places, by_size in segment_batch(subject.model, batch, subject.sizes, views[label]):
                    masks = batch["masks"][places, : by_size[0].shape[2], : by_size[0].shape[3]]
                    for metric, logits in zip(metrics[label].values(), by_size, strict=True):
                        metric.update(logits.argmax(dim=1), masks)
        count += len(batch["images"])
        advance(len(batch["images"]))
    if not count:
        raise ValueError("there are no images to score: check data.root and --limit")
    return {
        label: {
            size: {name: 100 * float(value) for name, value in metric.compute().items() if name != "iou"}
            for size, metric in by_size.items()
        }
        for label, by_size in metrics.items()
    }, count


def collect_detections(
    subjects: Mapping[str, Subject],
    batches: Iterable[Mapping[str, Any]],
    device: str = "cpu",
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[dict[str, dict[Size | None, dict[str, float]]], int]:
    """As `collect_scores`, of detectors: "ap", "ap50", "mask_ap" and so on, see `DetectionScores`.

    Args:
        subjects: Detectors by label, on `device`.
        batches: As `lookupvit.tasks.DetectionTask` takes them.
        device: Where they are.
        advance: Told the number of images of each batch that is done.

    Raises:
        ValueError: If there are no images.
    """
    metrics = {
        label: [DetectionScores(subject.model.has_masks) for _ in subject.sizes] for label, subject in subjects.items()
    }
    count = 0
    for batch in batches:
        images = [image.to(device, non_blocking=True) for image in batch["images"]]
        targets = [at_original_size(*pair) for pair in zip(batch["targets"], batch["images"], strict=True)]
        for label, subject in subjects.items():
            with torch.no_grad():
                by_size = subject.model.detect_at_sizes(images, subject.sizes, original_sizes(batch))
            for metric, found in zip(metrics[label], by_size, strict=True):
                metric.update([{key: value.cpu() for key, value in one.items()} for one in found], targets)
        count += len(images)
        advance(len(images))
    if not count:
        raise ValueError("there are no images to score: check data.root and --limit")
    scores = {
        label: [{name: 100 * float(value) for name, value in metric.compute().items()} for metric in own]
        for label, own in metrics.items()
    }
    return {label: dict(zip(subjects[label].sizes, own, strict=True)) for label, own in scores.items()}, count


def hits(logits: Tensor, targets: Tensor, k: int = 1) -> Tensor:
    """Whether the target is among the k largest logits: `(n, C)` and `(n,)` to `(n,)` bool. With C < k, all are."""
    return (logits.topk(min(k, logits.shape[1]), dim=1).indices == targets[:, None]).any(dim=1)


def accuracy(logits: Tensor, targets: Tensor, k: int = 1) -> float:
    """Top-k accuracy in percent of logits `(n, C)` against targets `(n,)`."""
    return 100 * hits(logits, targets, k).double().mean().item()


def halves(count: int) -> tuple[Tensor, Tensor]:
    """Places of every other image, beginning with the first, and of the rest: data sorted by class stays balanced."""
    return torch.arange(0, count, 2), torch.arange(1, count, 2)


@dataclass(frozen=True)
class Contrast:
    """One model for all sizes against one model per size, at one size, over the same seeds and images.

    Attributes:
        size: Compressed size.
        seeds: In the order of the accuracies.
        multi: Accuracy in percent of the multi-resolution models, by seed.
        single: The same of the models that were trained at this size alone.
        image_error: Standard error of the mean difference that the choice of test images alone brings, in points
            (paired, the models held fixed); None where it is not known, as of mIoU.
    """

    size: Size
    seeds: tuple[int, ...]
    multi: tuple[float, ...]
    single: tuple[float, ...]
    image_error: float | None

    @property
    def differences(self) -> tuple[float, ...]:
        """Multi minus single in points, by seed."""
        return tuple(m - s for m, s in zip(self.multi, self.single, strict=True))

    def as_dict(self) -> dict:
        """Plain data, with means and standard deviations over the seeds (None for a single seed)."""
        figures = {}
        for name, values in (("multi", self.multi), ("single", self.single), ("difference", self.differences)):
            figures |= {f"{name}_mean": mean(values), f"{name}_sd": spread(values), name: list(values)}
        return {"size": list(self.size), "seeds": list(self.seeds), **figures, "image_error": self.image_error}


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample (n - 1 in the denominator); None for a single value."""
    return stdev(values) if len(values) > 1 else None


def contrast(size: Size, multi: Mapping[int, Tensor], single: Mapping[int, Tensor]) -> Contrast:
    """Compares the two ways of training at one size, over the seeds that both have.

    Args:
        size: Compressed size.
        multi: `hits` `(n,)` of the multi-resolution model, by seed.
        single: `hits` `(n,)` of the model trained at this size, by seed, over the same images.

    Raises:
        ValueError: If they have no seed in common.
    """
    seeds = tuple(sorted(set(multi) & set(single)))
    if not seeds:
        raise ValueError(f"no seed was trained both ways: {sorted(multi)} for all sizes, {sorted(single)} for one")
    percent = {
        name: tuple(100 * runs[seed].double().mean().item() for seed in seeds)
        for name, runs in (("multi", multi), ("single", single))
    }
    # One number per image, averaged over the seeds: images are the sample here, and the seeds share them.
    by_image = torch.stack([multi[seed].double() - single[seed].double() for seed in seeds]).mean(dim=0)
    error = 100 * (by_image.std() / len(by_image) ** 0.5).item() if len(by_image) > 1 else float("nan")
    return Contrast(size, seeds, percent["multi"], percent["single"], error)
