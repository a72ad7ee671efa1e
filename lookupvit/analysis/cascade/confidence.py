"""How sure an answer is: what decides whether an image of a cascade goes on to the next size.

Letters: n images, C classes.
"""

from math import sqrt

import torch
from torch import Tensor

CONFIDENCES = ("probability", "margin", "entropy")
ALWAYS = 2.0  # a threshold above every confidence: each image goes on


def confidence(logits: Tensor, kind: str = "probability") -> Tensor:
    """How sure an answer is, in [0, 1]: logits `(n, C)` to `(n,)`, in float64 on the CPU.

    In float64 so that sure images can still be told apart: in float32 all beyond 1 - 6e-8 would be equal.
    """
    probabilities = logits.detach().cpu().double().softmax(dim=1)
    if kind == "probability":
        return probabilities.amax(dim=1)
    if kind == "margin":
        top = probabilities.topk(min(2, probabilities.shape[1]), dim=1).values
        return top[:, 0] - top[:, 1] if top.shape[1] > 1 else top[:, 0]
    most = torch.tensor(float(max(probabilities.shape[1], 2))).double().log()
    return (1 - torch.special.entr(probabilities).sum(dim=1) / most).clamp(0, 1)


def stage_answers(logits: list[Tensor], temperatures: tuple[float, ...], average: bool) -> list[Tensor]:
    """What each stage would answer: its logits `(n, C)` over its temperature or, averaged, the mean up to it."""
    answers = [value / t for value, t in zip(logits, temperatures, strict=True)]
    if average:
        answers = [torch.stack(answers[: i + 1]).mean(dim=0) for i in range(len(answers))]
    return answers


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature at which the likelihood of the targets is greatest, between 1/20 and 20.

    The mean negative log-likelihood is convex in b = 1 / temperature; the root of its derivative, the expected logit
    minus the target's, is found by bisection.
    """
    logits, targets = logits.detach().cpu().double(), targets.cpu()
    own = logits.gather(1, targets[:, None])[:, 0].mean()
    low, high = 1 / 20, 20.0
    for _ in range(60):
        b = sqrt(low * high)
        slope = ((b * logits).softmax(dim=1) * logits).sum(dim=1).mean() - own
        low, high = (b, high) if slope < 0 else (low, b)
    return 1 / sqrt(low * high)
