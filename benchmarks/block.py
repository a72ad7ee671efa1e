"""One block, every path: `python benchmarks/block.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lookupvit.bench.main import main

if __name__ == "__main__":
    sys.exit(main(["block", *sys.argv[1:]]))
