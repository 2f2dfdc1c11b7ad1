import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource
import statistics
import torch
from sepconv.devices import prepare_memory

prepare_memory()
faults = []
for _ in range(12):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(16_000_000).fill_(1.0)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(int(statistics.median(faults)), resource.getpagesize())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not on glibc")
def test_freed_memory_is_used_again() -> None:
    """Blocks as large as an evaluation's maps, of many pages each, come without page faults once the heap has room.

    In a process of its own: what other tests leave in the heap would decide where the blocks lie.
    """
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    faults, page = map(int, done.stdout.split())
    assert faults < 64_000_000 / page / 10
