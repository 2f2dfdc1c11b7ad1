import ctypes
import resource

import pytest
import torch

from sepconv.devices import keep_freed_memory


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not on glibc")
def test_freed_memory_is_used_again() -> None:
    """Blocks as large as an evaluation's maps, of many pages each, come without page faults once the heap has room."""
    keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(16_000_000).fill_(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for _ in range(4):  # until the heap has grown
        faults()
    assert max(faults() for _ in range(5)) < 64_000_000 / resource.getpagesize() / 10
