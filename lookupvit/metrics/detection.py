"""Average precision as COCO defines it, for boxes and masks: torchmetrics' metric over faster-coco-eval.

Letters: n objects of an image, (Y, X) pixels.
"""

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

# Our names, and torchmetrics' without the kind.
_NAMES = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
}
_KEYS = ("boxes", "labels", "scores", "masks", "iscrowd", "area")


class DetectionScores(MeanAveragePrecision):
    """COCO's average precision and recall of boxes and, where asked for, of masks.

    `update(found, targets)` takes for each image, of detections, "boxes" `(n, 4)` (x1, y1, x2, y2), "scores" `(n,)`,
    "labels" `(n,)` and "masks" `(n, Y, X)`; of targets the same without scores, and "iscrowd" `(n,)` (what lies in a
    crowd counts neither for nor against) and "area" `(n,)`, by which objects are small, medium or large.

    Args:
        masks: Whether masks are scored, too.
        max_detections: Detections of an image and class that count, the best by score; COCO's is 100.
    """

    def __init__(self, masks: bool, max_detections: int = 100) -> None:
        if max_detections < 1:
            raise ValueError(f"max_detections {max_detections}: at least 1 detection per image has to count")
        limits = sorted({1, min(10, max_detections), max_detections})
        limits = [limits[0]] * (3 - len(limits)) + limits  # torchmetrics wants three
        kinds = ("bbox", "segm") if masks else ("bbox",)
        # torchmetrics' own thresholds are float32, so that a recall of exactly 0.2, say, misses its point
        points = {"iou_thresholds": np.linspace(0.5, 0.95, 10), "rec_thresholds": np.linspace(0.0, 1.0, 101)}
        points = {name: values.tolist() for name, values in points.items()}
        super().__init__(iou_type=kinds, max_detection_thresholds=limits, backend="faster_coco_eval", **points)
        self.max_detections, self.warn_on_many_detections = max_detections, False

    def update(self, preds: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        """Adds images; see the class."""
        super().update(*([{k: one[k] for k in _KEYS if k in one} for one in images] for images in (preds, target)))

    def compute(self) -> dict[str, Tensor]:
        """Scores from 0 to 1 by name: "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large" and "ar".

        Those of masks are "mask_ap" and so on. A score of which there is nothing to find is left out, except that
        "ap" is -1, COCO's sign for it.
        """
        found: dict[str, Any] = super().compute()
        names = {**_NAMES, "ar": f"mar_{self.max_detections}"}
        scores = {}
        for kind, prefix in (("bbox", ""), ("segm", "mask_")):
            if kind in self.iou_type:
                theirs = f"{kind}_" if len(self.iou_type) > 1 else ""
                scores |= {prefix + own: found[theirs + name].float() for own, name in names.items()}
        return {name: value for name, value in scores.items() if value >= 0 or name == "ap"}


def original_sizes(batch: dict[str, Any]) -> list[tuple[int, int]]:
    """The size (height, width) of each image's file, or of the image where the batch does not know it."""
    pairs = zip(batch["targets"], batch["images"], strict=True)
    return [tuple(int(side) for side in target.get("orig_size", image.shape[1:])) for target, image in pairs]


def at_original_size(target: dict[str, Any], image: Tensor) -> dict[str, Any]:
    """A target of an image `(3, Y, X)` in pixels of its file, of `orig_size` (height, width).

    Masks take the nearest pixel. Where the image was enlarged that gives back the file's masks exactly.
    """
    here = tuple(image.shape[1:])
    size = tuple(int(side) for side in target.get("orig_size", here))
    if size == here:
        return target
    down, right = size[0] / here[0], size[1] / here[1]
    boxes = target["boxes"]
    moved = {"boxes": boxes * boxes.new_tensor([right, down, right, down])}
    if "area" in target:
        moved["area"] = target["area"] * (down * right)
    if "masks" in target:
        masks = target["masks"]
        moved["masks"] = (
            F.interpolate(masks[:, None], size, mode="nearest-exact")[:, 0] if len(masks) else masks.new_zeros(0, *size)
        )
    return {**target, **moved}
