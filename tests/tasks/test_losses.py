"""Losses against torch.nn.functional and against numbers worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from lookupvit.tasks.losses import classification_loss, distillation_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
CLASSES = torch.tensor([0, 2])
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])


def test_softmax_hard_and_soft_targets_equal_the_formula() -> None:
    log_p = LOGITS - LOGITS.exp().sum(dim=1, keepdim=True).log()
    hard = -(log_p[0, 0] + log_p[1, 2]) / 2
    soft = -(SOFT * log_p).sum() / 2
    torch.testing.assert_close(classification_loss(LOGITS, CLASSES), hard)
    torch.testing.assert_close(classification_loss(LOGITS, SOFT), soft)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_label_smoothing_is_a_mix_with_the_uniform_distribution(kind: str) -> None:
    smooth = 0.9 * F.one_hot(CLASSES, 3).float() + 0.1 / 3
    got = classification_loss(LOGITS, CLASSES, kind, label_smoothing=0.1)
    torch.testing.assert_close(got, classification_loss(LOGITS, smooth, kind))
    got = classification_loss(LOGITS, SOFT, kind, label_smoothing=0.1)
    torch.testing.assert_close(got, classification_loss(LOGITS, 0.9 * SOFT + 0.1 / 3, kind))


def test_sigmoid_is_binary_cross_entropy_summed_over_classes() -> None:
    want = F.binary_cross_entropy(LOGITS.sigmoid(), SOFT, reduction="sum") / 2
    torch.testing.assert_close(classification_loss(LOGITS, SOFT, "sigmoid"), want)
    # At logits of -log(C - 1) every class has the probability 1 / C: one right class, C - 1 wrong ones.
    flat = torch.full((1, 1000), -math.log(999))
    want = torch.tensor(-math.log(1 / 1000) - 999 * math.log(999 / 1000))
    torch.testing.assert_close(classification_loss(flat, torch.tensor([5]), "sigmoid"), want, rtol=1e-4, atol=0)


def test_wrong_shapes_and_names_are_told() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) do not fit logits of shape \(2, 3\)"):
        classification_loss(LOGITS, torch.zeros(2, 4))
    with pytest.raises(ValueError, match="unknown loss 'hinge': choose one of softmax, sigmoid"):
        classification_loss(LOGITS, CLASSES, "hinge")


def test_the_kind_is_compared_by_its_letters() -> None:
    """A name read from a file is another object than the name in the code."""
    student, teacher = torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0.0, 2.0, 1.0]])
    soft = -(teacher.softmax(1) * student.log_softmax(1)).sum()
    torch.testing.assert_close(distillation_loss(student, teacher, "".join(["soft", "max"])), soft)
