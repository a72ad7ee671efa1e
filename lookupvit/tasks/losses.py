"""Losses of classification: against hard (integer) and soft (probability) targets, and against a teacher."""

import torch
import torch.nn.functional as F

from lookupvit.grid import Tokens

LOSSES = ("softmax", "sigmoid")


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, kind: str = "softmax", label_smoothing: float = 0.0
) -> torch.Tensor:
    """Loss of one head, averaged over the batch.

    Args:
        logits: `(B, C)` scores of one head.
        targets: `(B,)` integer classes, or `(B, C)` probabilities (after MixUp or CutMix).
        kind: `"softmax"` is the cross-entropy; `"sigmoid"` is the binary cross-entropy of each class, summed over
            the classes.
        label_smoothing: Weight of the uniform distribution that is mixed into the targets, in [0, 1).

    Returns:
        A scalar, in nats.

    Raises:
        ValueError: If `kind` is unknown, or if the targets fit neither form.
    """
    if targets.ndim not in (1, 2) or (targets.ndim == 2 and targets.shape != logits.shape):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit logits of shape {tuple(logits.shape)}: "
            "give (B,) classes or (B, C) probabilities"
        )
    if kind == "softmax":
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if kind == "sigmoid":
        classes = logits.shape[1]
        soft = F.one_hot(targets, classes) if targets.ndim == 1 else targets  # (B,) -> (B, C)
        soft = soft.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / classes
        # A sum over the classes keeps the size of the gradient of each logit the same, whatever their number.
        return F.binary_cross_entropy_with_logits(logits, soft, reduction="none").sum(dim=1).mean()
    raise ValueError(f"unknown loss {kind!r}: choose one of {', '.join(LOSSES)}")


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, kind: str = "softmax") -> torch.Tensor:
    """Difference between a student's distribution and its teacher's; smallest where they agree.

    Args:
        student: Logits `(B, C)`.
        teacher: Logits `(B, C)`, detached.
        kind: `"softmax"`: cross-entropy between the two softmax distributions; `"sigmoid"`: binary cross-entropy
            of each class, summed over the classes.

    Returns:
        A scalar, in nats.
    """
    return classification_loss(student, teacher.softmax(dim=1) if kind == "softmax" else teacher.sigmoid(), kind)


def feature_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between pooled features `(B, D)`, averaged over the batch: a scalar in 0..2."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=1).mean()


def pooled(tokens: Tokens) -> torch.Tensor:
    """Mean of the normalised compressed tokens, or of the lookup tokens where there are no others: `(B, D)`."""
    return (tokens.lookup if tokens.compressed is None else tokens.compressed).mean(dim=1)


def mean_logits(logits: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean `(B, C)` of the heads' logits, each `(B, C)`."""
    return torch.stack(list(logits.values())).mean(dim=0)


def segmentation_loss(
    logits: torch.Tensor,
    masks: torch.Tensor,
    ignore_index: int = 255,
    class_weights: torch.Tensor | None = None,
    dice_weight: float = 0.0,
) -> torch.Tensor:
    """Cross-entropy of the pixels that count, and a share of soft Dice.

    Args:
        logits: `(B, C, Y, X)`.
        masks: Classes `(B, Y, X)`.
        ignore_index: Class of pixels that do not count.
        class_weights: Weight of each class in the cross-entropy, `(C,)`; None: equal.
        dice_weight: Weight of `dice_loss`, which is added.

    Returns:
        A scalar, in nats; 0 where no pixel counts.
    """
    logits, valid = logits.float(), masks != ignore_index
    loss = F.cross_entropy(logits, masks, class_weights, ignore_index=ignore_index, reduction="sum")
    classes = masks[valid]
    count = classes.numel() if class_weights is None else float(class_weights[classes].sum())
    loss = loss / max(count, 1e-6)
    return loss + dice_weight * dice_loss(logits, masks, valid) if dice_weight else loss


def dice_loss(logits: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice coefficient, averaged over the classes that occur in the batch.

    Args:
        logits: `(B, C, Y, X)`.
        masks: Classes `(B, Y, X)`.
        valid: Pixels that count `(B, Y, X)`.

    Returns:
        A scalar in 0..1.
    """
    found = logits.softmax(dim=1).transpose(0, 1)[:, valid]  # (B, C, Y, X) -> (C, B, Y, X) -> (C, P)
    truth = F.one_hot(masks[valid], logits.shape[1]).T.to(found.dtype)  # (P,) -> (P, C) -> (C, P)
    occurs = truth.sum(dim=1) > 0
    dice = 2 * (found * truth).sum(dim=1) / (found.sum(dim=1) + truth.sum(dim=1)).clamp(min=1e-6)
    return (1 - dice)[occurs].mean() if occurs.any() else logits.sum() * 0
