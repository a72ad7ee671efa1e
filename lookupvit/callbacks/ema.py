"""A moving average of the weights whose decay rises from step to step."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmedUpAverage(WeightAveraging):
    """Lightning's moving average, with a decay of `min(decay, (1 + n) / (10 + n))` after n averaged steps.

    As TensorFlow's `ExponentialMovingAverage` has it: the first, random weights are forgotten at once, and a decay that
    is meant for a long run does no harm to a short one.

    Args:
        decay: The highest.
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Tensor, new: Tensor, steps: Tensor) -> Tensor:
            now = ((1 + steps) / (10 + steps)).clamp(max=decay)  # a tensor: no wait for the GPU
            return now * mean + (1 - now) * new

        super().__init__(avg_fn=average)
