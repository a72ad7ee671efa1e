"""A loader process that hangs does not keep Python from ending."""

import subprocess
import sys

SCRIPT = """
import time
from torch.utils.data import DataLoader
from datamodules.loading.workers import leave_signals

class Stuck:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        time.sleep(600)

batches = iter(DataLoader(Stuck(), num_workers=1, worker_init_fn=leave_signals))
time.sleep(1)  # the process is in its sample by now
print("the end")
"""


def test_a_loader_process_that_hangs_is_ended_with_its_owner() -> None:
    ended = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert ended.stdout == "the end\n"
