"""All tables for one GPU in under 8 minutes: `python benchmarks/gpu.py`; try it out with `--device cpu --quick`.

It runs from a checkout without installation, and needs only torch, torchvision, timm and numpy.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupvit.cli.bench import main

if __name__ == "__main__":
    sys.exit(main(["gpu", *sys.argv[1:]]))
