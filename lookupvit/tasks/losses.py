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
