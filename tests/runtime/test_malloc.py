"""Freed memory goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Allocates and frees blocks of growing size, as transfers of large jobs do, among small ones that stay.
_BURST = """
import sys
from pathlib import Path
from gearman_twisted.runtime.malloc import give_memory_back

def resident():
    [line] = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS:")]
    return int(line.split()[1])

if sys.argv[1] == "set":
    assert give_memory_back()
before = resident()
small = []
for _ in range(2):
    large = []
    for _ in range(200):
        large.append(bytes(500_000))
        small.append(bytes(1000))
    del large
print(resident() - before)
"""


def kept_kib(how: str) -> int:
    """What a process keeps after a burst."""
    words = [sys.executable, "-c", _BURST, how]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries need no such thing")
def test_burst_is_given_back() -> None:
    """After large blocks were freed the process is small again, which it is not otherwise."""
    assert kept_kib("set") < 5_000
    assert kept_kib("left") > 15_000
