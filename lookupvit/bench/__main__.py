"""``python -m lookupvit.bench`` is ``lookupvit bench``."""

import sys

from lookupvit.bench.main import main

if __name__ == "__main__":
    sys.exit(main())
