"""Two floors under any time: operations over the machine's matrix rate, bytes over its bandwidth, both measured."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lookupvit.bench.timing import timer_for

GEMM_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass(frozen=True)
class Machine:
    """What this machine can do at best.

    Attributes:
        flops: Floating-point operations per second of its best matrix product.
        bandwidth: Bytes per second that a large copy reads and writes.
    """

    flops: float
    bandwidth: float

    def floors(self, macs: float, bytes_: float) -> tuple[float, float]:
        """Least seconds for `macs` multiply-adds (two operations each), and for moving `bytes_` bytes once."""
        return 2 * macs / self.flops, bytes_ / self.bandwidth


def measure_machine(
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    gemm_sizes: tuple[int, ...] | None = None,
    copy_bytes: int | None = None,
    tries: int = 5,
) -> Machine:
    """Best rate of square matrix products, and of a large copy, under the present threads and precision settings.

    Args:
        dtype: Type of the matrix products.
        device: "cpu" or "cuda...".
        gemm_sizes: Rows of the square matrices; by default what suits the device.
        copy_bytes: Size of the copied tensor; by default far more than any cache.
        tries: The best of so many is taken.
    """
    kind = device.split(":")[0]
    timer = timer_for(device)

    def best(function: Callable[[], object]) -> float:
        timer(function, 1)
        return min(timer(function, 1) for _ in range(tries))

    flops = 0.0
    for size in gemm_sizes or GEMM_SIZES[kind]:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        flops = max(flops, 2 * size**3 / best(lambda a=a, b=b, out=out: torch.mm(a, b, out=out)))
    source = torch.zeros((copy_bytes or COPY_BYTES[kind]) // 4, device=device)
    target = torch.ones_like(source)
    return Machine(flops, 2 * source.numel() * 4 / best(lambda: target.copy_(source)))


def least_bytes(model: nn.Module, *tensors: torch.Tensor) -> int:
    """Bytes that one forward pass must read at least: every parameter and the inputs once. Activations come on top."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *tensors))
