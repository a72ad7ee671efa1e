"""Every CPU table of docs/PERFORMANCE.md, in minutes: `python benchmarks/all.py`, the same as `lookupvit bench all`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupvit.bench.main import main

if __name__ == "__main__":
    sys.exit(main(["all", *sys.argv[1:]]))
