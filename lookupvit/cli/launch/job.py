"""One training of a series, as it is handed to another process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lookupvit.cli.common import run_folder

BUSY = 3  # exit code of a worker whose training another process has begun


@dataclass(frozen=True)
class Job:
    """A training to run.

    Attributes:
        folder: Its folder, absolute.
        argv: Options of `fit`.
        settings: The settings that decide its result.
        cwd: The folder that relative paths in `argv` start from.
    """

    folder: str
    argv: list[str]
    settings: dict[str, Any]
    cwd: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return Path(self.folder).name

    @property
    def log(self) -> Path:
        """What its process prints."""
        return Path(self.folder) / "train.log"

    def start(self, environment: dict[str, str]) -> subprocess.Popen:
        """Starts a process that trains, apart from this one's signals; its output is added to `log`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "lookupvit.cli.launch.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.cwd,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the command, which stops its trainings in an orderly way
                text=True,
            )
        process.stdin.write(json.dumps(asdict(self)))
        process.stdin.close()
        return process

    def last_line(self) -> str:
        """The last line of the log: of a failed training the reason."""
        lines = [line for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return lines[-1].strip().removeprefix("lookupvit fit: error: ") if lines else "it printed nothing"

    def is_free(self) -> bool:
        """Whether no process trains in the folder at this moment."""
        with self.held() as free:
            return free

    @contextmanager
    def held(self) -> Iterator[bool]:
        """Holds the right to train in the folder; yields False if another process has it."""
        try:
            lock = run_folder.lock(Path(self.folder))
        except run_folder.Busy:
            yield False
            return
        try:
            yield True
        finally:
            if lock is not None:
                lock.release()  # the file stays: whoever waits for it must not hold a file that is gone


def threads_for(processes: int) -> dict[str, str]:
    """This process's environment, in which the processes that run at once share the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // processes)), **os.environ}
