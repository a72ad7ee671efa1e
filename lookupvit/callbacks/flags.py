"""Flags that all ranks share, reduced on the device; the host reads them without waiting for the current step."""

import torch
import torch.distributed as dist
from torch import Tensor


def any_rank(flags: Tensor) -> Tensor:
    """The largest value of each flag over all ranks, in place, on the flags' own device.

    With NCCL the host goes on at once: the device waits.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags


class Later:
    """Flags on their way to the host.

    Args:
        flags: One value per flag, on any device.
        reduce: Whether a flag that is set on any rank counts; all ranks then build and read this together.
    """

    def __init__(self, flags: Tensor, reduce: bool = False) -> None:
        self._event, self._work = None, None
        if reduce:
            self._work = dist.all_reduce(flags, op=dist.ReduceOp.MAX, async_op=True)
        if flags.device.type == "cpu":
            self._host = flags
            return
        if self._work is not None:
            self._work.wait()  # orders the copy behind the sum on the device; the host does not wait
        self._host = flags.to("cpu", non_blocking=True)  # into pinned memory
        self._event = torch.Event(flags.device)
        self._event.record()

    def read(self) -> list[bool]:
        """The flags. A step after they were set it costs nothing: the device is past them."""
        if self._event is not None:
            self._event.synchronize()
        elif self._work is not None:
            self._work.wait()
        return [bool(value) for value in self._host.numpy()]
