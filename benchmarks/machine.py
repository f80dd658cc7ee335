"""The machine of a measurement, and the versions of its programs."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import twisted

import gearman_twisted
from benchmarks.programs import Missing, program


def describe_machine() -> str:
    """Return processor, cores and memory, in a few words."""
    fields = _fields("/proc/cpuinfo")
    memory_kib = int(_fields("/proc/meminfo").get("MemTotal", "0").split()[0])
    model = fields.get("model name", platform.machine())
    return f"{model}, {os.cpu_count()} cores, {memory_kib / 2**20:.0f} GiB of memory"


def versions() -> dict[str, str]:
    """Return the versions by program; databases report theirs themselves."""
    found = {
        "ours": f"gearman_twisted {gearman_twisted.__version__}{_commit()}",
        "Python": f"Python {platform.python_version()}",
        "Twisted": f"Twisted {twisted.__version__}",
        "kernel": f"{platform.system()} {platform.release()}",
    }
    try:
        words = [program("gearmand", "gearman-job-server"), "--version"]
    except Missing:
        return found
    said = subprocess.run(words, capture_output=True, text=True, check=False).stdout.split()
    return found | {"gearmand": f"gearmand {said[1] if len(said) > 1 else ''}".strip()}


def _fields(path: str) -> dict[str, str]:
    """Return the fields of a file of /proc; of several with one name the first."""
    found: dict[str, str] = {}
    for line in Path(path).read_text("utf-8").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _commit() -> str:
    """Return the commit, with a plus if files differ from it; empty without git."""
    root = Path(__file__).parents[1]
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--dirty=+"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""
