"""What a trained task answers to samples of its test data: for `lookupvit compare`'s picture."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lookupvit.analysis.answers import Answer
from lookupvit.callbacks.pictures import denormalised
from lookupvit.tasks import CaptioningTask, ClassificationTask


def samples_of(data: Any, count: int) -> tuple[Any, ...]:
    """A batch of test samples, spread evenly over the data, as the test's loader collates them.

    Args:
        data: A DataModule that was tested.
        count: Samples at most.
    """
    loader = data.test_dataloader()
    places = torch.linspace(0, len(loader.dataset) - 1, min(count, len(loader.dataset))).long().unique()
    return loader.collate_fn([loader.dataset[place] for place in places.tolist()])


def can_answer(task: LightningModule) -> bool:
    """Whether a task's answers are words: a class or a caption."""
    if isinstance(task, ClassificationTask):
        return task.class_index is None and task.set_scores is None  # the classes of the data are the model's
    return isinstance(task, CaptioningTask)


@torch.inference_mode()
def answers_to(batch: tuple[Any, ...], task: LightningModule, data: Any) -> list[Answer]:
    """The answers of a task, in evaluation mode, to a batch of `samples_of`."""
    if isinstance(task, CaptioningTask):
        texts = task.caption(batch[0])
        if not hasattr(data, "check"):
            return [Answer(text, None) for text in texts]
        errors = [data.check(int(number), text) for number, text in zip(batch[1], texts, strict=True)]
        return [Answer(text, not error, error) for text, error in zip(texts, errors, strict=True)]
    found, names = task.predict_step(batch[0], 0), _names(data)
    likely = zip(found["classes"][:, 0].tolist(), found["probabilities"][:, 0].tolist(), batch[1].tolist(), strict=True)
    return [Answer(names[k], k == target, f"{100 * probability:.0f} %") for k, probability, target in likely]


def pictures_and_truths(batch: tuple[Any, ...], data: Any) -> tuple[list[Tensor], list[str]]:
    """The images `(3, Y, X)` or clips `(3, T, Y, X)` of a batch in [0, 1], and what is right of each."""
    images = batch[0][:, 0] if batch[0].ndim == 6 else batch[0]  # (B, V, 3, T, Y, X) -> the first view of each video
    images = denormalised(images, getattr(data, "mean", None), getattr(data, "std", None), channels=1)
    captions = isinstance(batch[2:] and batch[2][0], list)
    truths = [texts[0] for texts in batch[2]] if captions else [_names(data)[k] for k in batch[1].tolist()]
    return list(images), truths


def _names(data: Any) -> list[str]:
    return data.classes if hasattr(data, "num_frames") else data.class_names
