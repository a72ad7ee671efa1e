"""``python -m lookupvit`` is the command ``lookupvit``."""

import sys

from lookupvit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
