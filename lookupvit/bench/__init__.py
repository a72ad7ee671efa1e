"""Side-by-side measurements: `lookupvit bench SUITE`, or `python -m lookupvit.bench SUITE`.

Needs torch, torchvision and timm only; rich (tables, progress) and matplotlib (plots) are used where they are there.
"""

import os

# torch's profiler reports its starts and stops on stderr, in the midst of tables
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

from lookupvit.bench.main import bench_main

__all__ = ["bench_main"]
