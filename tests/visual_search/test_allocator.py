from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

COUNT = """
import resource, sys
import torch
from visual_search.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(10):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_large_blocks_are_not_mapped_anew_each_time() -> None:
    """20 blocks of 40 MB are 195,000 pages of 4 kB; kept, the same ones are used again."""

    def faults(how: str) -> int:
        done = subprocess.run(
            [sys.executable, "-c", COUNT, how],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert faults("kept") < faults("as it comes") / 4
