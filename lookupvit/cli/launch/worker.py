"""The process of one training: `python -m lookupvit.cli.launch.worker`, with a `Job` as JSON on its input."""

import json
import os
import signal
import sys


def main() -> int:
    """Trains; returns 0, BUSY if another process is at it, or the exit code of `lookupvit fit`."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a cluster's notice goes to the process that started this one
    job = json.load(sys.stdin)
    sys.path.insert(0, os.getcwd())  # classes of the user's own
    from lookupvit.cli.main import answer

    def train() -> int:
        from rich.console import Console

        from lookupvit.cli.launch.job import BUSY, Job
        from lookupvit.cli.runs import attempt

        return 0 if attempt(Job(**job), Console()) else BUSY

    return answer("fit", train, debug=os.environ.get("LOOKUPVIT_DEBUG", "0") not in ("", "0"))


if __name__ == "__main__":
    sys.exit(main())
