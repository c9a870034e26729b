from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

COUNT = """
import resource, sys, threading
import numpy as np
from visual_search.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def work(rounds):
    for _ in range(rounds):
        np.ones(5_000_000, dtype=np.uint8)

def in_threads(rounds):
    threads = [threading.Thread(target=work, args=(rounds,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_threads(20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_blocks_are_not_mapped_anew_each_time() -> None:
    """40 blocks of 5 MB are 49,000 pages; kept, each thread maps its own once."""

    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", COUNT, how],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert faults("kept") < 10_000
    assert faults("as it comes") > 30_000
