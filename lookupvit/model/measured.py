"""A small table of what is really faster: a product's time is not its operation count.

`path="measured"` times the plain and the absorbed cross-attention once for each device, type and shape, and remembers
the faster one, in this process and in a file for the next. The function is the same either way; only rounding differs,
so it suits inference on one machine more than a training run that must be repeatable.
"""

import json
import os
import platform
import time
from pathlib import Path

import torch
from torch import nn

_REPEATS = 5
_table: dict[str, str] | None = None


def table_file() -> Path:
    """Where the table is kept: `LOOKUPVIT_PATHS`, or `lookupvit/paths.json` in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LOOKUPVIT_PATHS") or cache / "lookupvit" / "paths.json")


def faster_path(cross: nn.Module, batch: int, n: int, m: int, device: torch.device, dtype: torch.dtype) -> str:
    """The faster of "plain" and "absorbed" for a `CrossAttention`, measured at the first call of a shape.

    Args:
        cross: the module; its width, heads and options are part of the shape.
        batch: B; sizes between two powers of two share an entry.
        n: lookup tokens.
        m: compressed tokens.
        device: where it runs. Where nothing runs (meta, or while torch.compile traces) the cost model answers.
        dtype: type of the tokens.

    Returns:
        "plain", "absorbed", or "auto" where nothing can be measured.
    """
    if device.type == "meta" or torch.compiler.is_compiling():
        return "auto"
    batch = 1 << (batch - 1).bit_length()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    grad = "training" if torch.is_grad_enabled() else "inference"
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    shape = f"B{batch} N{n} M{m} D{cross.dim} H{cross.num_heads} {cross.cross_norm} {cross.reuse}"
    key = f"{name} {threads} {dtype} {grad} {shape}"
    table = _read()
    if key not in table:
        table[key] = _measure(cross, batch, n, m, device, dtype)
        _write(table)
    return table[key]


def _measure(cross: nn.Module, batch: int, n: int, m: int, device: torch.device, dtype: torch.dtype) -> str:
    compressed = torch.randn(batch, m, cross.dim, device=device, dtype=dtype)
    lookup = torch.randn(batch, n, cross.dim, device=device, dtype=dtype)
    seconds = {"plain": [], "absorbed": []}
    kept = cross.path
    try:
        for turn in range(_REPEATS + 1):
            for path, times in seconds.items():
                cross.path = path
                start = _now(device)
                _, attention = cross.gather(compressed, lookup)
                if hasattr(cross, "v_infuse"):
                    cross.infuse(compressed, attention, residual=lookup)
                if turn:  # the first is a warm-up
                    times.append(_now(device) - start)
    finally:
        cross.path = kept
    return min(seconds, key=lambda path: sorted(seconds[path])[_REPEATS // 2])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _read() -> dict[str, str]:
    global _table
    if _table is None:
        file = table_file()
        try:
            _table = dict(json.loads(file.read_text())) if file.is_file() else {}
        except (OSError, ValueError):  # a table is only a memory: measure again
            _table = {}
    return _table


def _write(table: dict[str, str]) -> None:
    file = table_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(table, indent=1))
        part.replace(file)  # never half a file, whoever else writes
    except OSError:  # a read-only home: this process still remembers
        pass
