"""Throughput and latency against ViT, ToMe and LookViT: `python benchmarks/inference.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupvit.bench.main import main

if __name__ == "__main__":
    sys.exit(main(["inference", *sys.argv[1:]]))
