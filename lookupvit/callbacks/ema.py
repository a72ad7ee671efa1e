"""A moving average of the weights whose decay rises from step to step."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmedUpAverage(WeightAveraging):
    """Lightning's moving average, with a decay of `min(decay, (1 + n) / (10 + n))` after n averaged steps.

    The rule of TensorFlow's `ExponentialMovingAverage`: the random first weights are forgotten quickly, and a decay
    that is meant for a long run does no harm in a short one.

    Args:
        decay: The highest decay, which it rises to.
    """

    def __init__(self, decay: float) -> None:
        def average(mean: Tensor, new: Tensor, steps: Tensor) -> Tensor:
            # The decay stays a tensor, so that the CPU does not wait for the GPU.
            current = ((1 + steps) / (10 + steps)).clamp(max=decay)
            return current * mean + (1 - current) * new

        super().__init__(avg_fn=average)
