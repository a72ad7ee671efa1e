"""Nearest neighbours: how good frozen features are, without training anything.

Letters: n queries, m images of the bank, D width of a feature, C classes, k neighbours.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batches = Iterable[tuple[Tensor, Tensor]]


@torch.inference_mode()
def pooled_features(
    model: nn.Module, batches: Batches, compressed_size: tuple[int, int] | None = None, tokens: str = "compressed"
) -> tuple[Tensor, Tensor]:
    """Pooled, normalised tokens of every image, and its class.

    Args:
        model: `LookupViT` or `ViT`, in evaluation mode.
        batches: `(images (B, 3, Y, X), targets (B,))`.
        compressed_size: Compressed grid; the model's own by default.
        tokens: "compressed" or "lookup"; a ViT has the latter only, and they are taken.

    Returns:
        Features `(n, D)` of length 1, targets `(n,)`; on the CPU.

    Raises:
        ValueError: For tokens that the model does not normalise.
    """
    device = next(model.parameters()).device
    if model.compressed_size is None:
        tokens = "lookup"
    elif tokens not in model.norms:
        raise ValueError(f"--tokens {tokens}: this model has {', '.join(model.norms)} tokens only")
    head = "compressed" if tokens == "compressed" else None
    options = {} if model.compressed_size is None else {"compressed_size": compressed_size, "head": head}
    found, classes = [], []
    for images, targets in batches:
        state = model.forward_features(images.to(device), **options)
        found.append(F.normalize(getattr(state, tokens).mean(dim=1).float(), dim=1).cpu())  # (B, T, D) -> (B, D)
        classes.append(targets)
    return torch.cat(found), torch.cat(classes)


def knn_accuracy(
    bank: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    chunk: int = 1024,
) -> dict[int, float]:
    """Accuracy of a vote among the nearest images of the bank, each weighing exp(cosine / temperature) (as DINO does).

    Args:
        bank: Features `(m, D)` of length 1, classes `(m,)`.
        queries: Features `(n, D)` of length 1, classes `(n,)`.
        ks: Numbers of neighbours.
        temperature: Small: the nearest decide; large: each counts the same.
        chunk: Queries compared at a time.

    Returns:
        Accuracy in 0..1 by k.

    Raises:
        ValueError: For a k of less than 1 or more than the bank, or a temperature that is not positive.
    """
    (features, classes), (asked, truth) = bank, queries
    for k in ks:
        if not 1 <= k <= len(features):
            raise ValueError(f"--k {k}: give 1 to {len(features)}, the number of training images")
    if temperature <= 0:
        raise ValueError(f"--temperature {temperature} is not positive")
    count = int(max(classes.max(), truth.max())) + 1
    right = dict.fromkeys(ks, 0)
    for part, wanted in zip(asked.split(chunk), truth.split(chunk), strict=True):
        cosine, index = (part @ features.t()).topk(max(ks), dim=1)  # (n', m) -> (n', k)
        weight = ((cosine - cosine[:, :1]) / temperature).exp()  # the nearest weighs 1, whatever the temperature
        votes = F.one_hot(classes[index], count) * weight.unsqueeze(2)  # (n', k, C)
        for k in ks:
            right[k] += int((votes[:, :k].sum(dim=1).argmax(dim=1) == wanted).sum())
    return {k: value / len(truth) for k, value in right.items()}
