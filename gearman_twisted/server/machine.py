"""How much memory this process may take, by what the operating system says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Where Linux mounts control groups, and the files with their limits, by the version.
_CGROUPS = Path("/sys/fs/cgroup")
_V1 = ("memory", "memory.limit_in_bytes")
_V2 = ("", "memory.max")


def memory_bytes(cgroups: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory of the machine or of the control group, whichever is less.

    Args:
        cgroups: where the control groups are mounted.
        own: the file that lists those of this process.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_group_limits(cgroups, own)])


def _group_limits(cgroups: Path, own: Path) -> Iterator[int]:
    """Yield the limits of this process's groups and of those around them, as far as they can be read."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            folder, name = _V2
        elif "memory" in controllers.split(","):
            folder, name = _V1
        else:
            continue
        group = Path(path.strip("/"))
        # In a container its own group is mounted at the top, while the path may be that on the host.
        for each in (group, *group.parents):
            try:
                text = (cgroups / folder / each / name).read_text().strip()
            except OSError:
                continue
            # Version 2 says "max" for no limit, version 1 a number far beyond any memory.
            if text.isdigit():
                yield int(text)
