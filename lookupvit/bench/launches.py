"""Suite (e): one block counted instead of timed: operators, copies and bytes of A. It needs no GPU.

Tensors are fake (torch's FakeTensorMode): every operator is dispatched as for real ones, and none computes.

Letters: B batch, N lookup tokens, M compressed tokens, D embed_dim, H heads, A attention (B, H, M, N).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lookupvit.bench.cases import DTYPES
from lookupvit.bench.report import Report
from lookupvit.checks import PATHS, check_choice, check_heads
from lookupvit.model.block import LookupViTBlock

BASELINE = "ViT block (timm)"
MIB = 1 << 20
# Operators that start no kernel besides views: they allocate memory, or hand on the memory that they get.
_NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
# Columns after "fwd" and "step", and what of `Counts` they hold.
_COLUMNS = {"": "launches", " types": "type_copies", " copies": "copies", " A MiB": "attention", " all": "dispatched"}
_COPIES = {"clone", "copy_", "_to_copy", "_foreach_copy_", "contiguous"}


@dataclass
class Counts:
    """What a call dispatched.

    Attributes:
        launches: Operators that start at least one kernel on a GPU: all but views and allocations.
        dispatched: All operators.
        type_copies: Copies from one type to another, also of weights; one operator that converts many tensors is one.
        copies: All other copies: of a tensor to another layout, or into a part of another.
        attention: Bytes written to tensors that have the size of A, or, for one head at a time, of its (M, N).
    """

    launches: int = 0
    dispatched: int = 0
    type_copies: int = 0
    copies: int = 0
    attention: int = 0


class LaunchCounter(TorchDispatchMode):
    """Counts the operators dispatched below autograd and autocast, in `counts`, and lists their names in `names`.

    Args:
        m: M, to recognise A by its shape.
        n: N.
        entries: B H M N.
    """

    def __init__(self, m: int = 0, n: int = 0, entries: int = 0):
        super().__init__()
        self.counts, self.names = Counts(), []
        self._n, self._one_head, self._entries = n, {(m, n), (n, m)}, entries

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "prim":  # a fake tensor that is asked for its device
            return out
        self.counts.dispatched += 1
        if func.is_view or name in _NO_KERNEL:
            return out
        self.counts.launches += 1
        self.names.append(name)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if name in _COPIES:
            # `copy_` and `_foreach_copy_` read their second argument, the others their first
            read = tree_leaves(args[1] if name.endswith("copy_") else args[0])
            written = tree_leaves(args[0]) if name.endswith("copy_") else results
            retyped = any(a.dtype != b.dtype for a, b in zip(read, written, strict=True))
            self.counts.type_copies += retyped
            self.counts.copies += not retyped
        for t in results:
            whole = t.numel() == self._entries and self._n in t.shape[-2:]
            if whole or tuple(t.shape[-2:]) in self._one_head:
                self.counts.attention += t.numel() * t.element_size()
        return out


def count_block(
    path: str | None,
    n: int = 196,
    m: int = 25,
    batch: int = 8,
    dim: int = 768,
    num_heads: int = 12,
    dtype: str = "bf16",
    drop_path: float = 0.0,
    device: str = "cpu",
) -> tuple[LaunchCounter, LaunchCounter | None]:
    """Counts the forward pass, with gradients enabled, and the backward pass of one block in training mode.

    Args:
        path: Path of a `LookupViTBlock`; None for timm's ViT block.
        n: N.
        m: M.
        batch: B.
        dim: D.
        num_heads: H.
        dtype: "fp32", or "bf16" for autocast over fp32 weights.
        drop_path: Stochastic depth.
        device: "cpu", or "cuda", which need not be there.

    Returns:
        The forward and the backward pass. The second is None on a device that is not there, for which autograd does
        not start.
    """
    with FakeTensorMode(), torch.device(device):
        if path is None:
            block: nn.Module = Block(dim, num_heads, qkv_bias=True, drop_path=drop_path)
        else:
            block = LookupViTBlock(dim, num_heads, path=path, drop_path=drop_path)
        lookup = torch.empty(batch, n, dim, requires_grad=True)
        compressed = torch.empty(batch, m, dim, requires_grad=True)
        forward, backward = (LaunchCounter(m, n, batch * num_heads * m * n) for _ in range(2))
        with _autocast(device, dtype), forward:
            out = (block(lookup),) if path is None else block(compressed, lookup)[:2]
        grads = [torch.empty_like(o) for o in out]
        if device != "cpu" and not torch.cuda.is_available():
            return forward, None
        with backward:
            torch.autograd.backward(out, grads)
    return forward, backward


@contextmanager
def _autocast(device: str, dtype: str) -> Iterator[None]:
    """As torch.autocast, which turns itself off for a device that is not there."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, dtype == "bf16")
    torch.set_autocast_dtype(device, DTYPES["bf16"])
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


def launches(
    shapes: tuple[tuple[int, int], ...] = ((196, 25),),
    batch: int = 8,
    dim: int = 768,
    num_heads: int = 12,
    paths: tuple[str, ...] = ("plain", "absorbed", "tiled"),
    drop_path: float = 0.1,
    device: str = "cpu",
) -> Report:
    """Counts timm's ViT block, and a LookupViT block in each path, in each type, with and without drop path.

    Args:
        shapes: Pairs (N, M), one group each.
        batch: B.
        dim: D.
        num_heads: H.
        paths: Paths of `LookupViTBlock`.
        drop_path: The probability of the rows that have one.
        device: "cpu" or "cuda", whose operators differ a little; it need not be there.

    Raises:
        ValueError: For a path that does not exist, or heads that do not divide D.
    """
    check_heads(dim, num_heads)
    for path in paths:
        check_choice("path", path, PATHS)
    title = f"Launches of one block, training mode, D={dim}, H={num_heads}, batch {batch}"
    report = Report(title, [], {"device": device, "torch": str(torch.__version__)}, [], ["N", "M", "dtype"])
    for n, m in shapes:
        for dtype in DTYPES:
            for path in (None, *paths):
                for p in dict.fromkeys((0.0, drop_path)):
                    name = BASELINE if path is None else f"LookupViT block, {path}"
                    row = {"model": name, "N": n, "M": m, "dtype": dtype, "drop path": p}
                    both = count_block(path, n, m, batch, dim, num_heads, dtype, p, device)
                    report.rows.append(row | _columns(*(c and c.counts for c in both)))
    report.notes.append("`fwd` is the forward pass, `step` forward and backward; bf16 is autocast over fp32 weights")
    if report.rows[-1]["step"] is None:
        report.notes.append(
            f"without a {device} device autograd does not start, so the forward pass alone was counted, and with fused "
            "attention in its unfused form, because the card decides which kernel it is"
        )
    return report


def _columns(forward: Counts, backward: Counts | None) -> dict:
    """The columns of a row, from the counts of the forward and the backward pass."""
    row: dict = {}
    for name, parts in (("fwd", [forward]), ("step", [forward, backward])):
        total = None if None in parts else {key: sum(getattr(p, key) for p in parts) for key in asdict(Counts())}
        for column, key in _COLUMNS.items():
            value = total and total[key]
            row[f"{name}{column}"] = value / MIB if total and key == "attention" else value
    return row
