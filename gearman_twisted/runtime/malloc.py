"""Freed memory goes back to the system, also after a burst of large jobs."""

from __future__ import annotations

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# What glibc starts with, in bytes.
_THRESHOLD = 128 * 1024


def give_memory_back() -> bool:
    """Have the C library give freed memory back to the system, for the rest of the process.

    glibc maps large blocks one by one, and unmaps them when they are freed. Once blocks of up to 32 MiB were
    freed it raises the limit from which they count as large to that size: after that they come from its heap,
    which stays as large as it ever was. Setting the limits keeps them where they were.

    For the start of a process that is ours; a program that embeds a server, client or worker may call it, or
    set ``MALLOC_MMAP_THRESHOLD_=131072`` in its environment.

    Returns:
        Whether it could be set; not with other C libraries, such as musl or that of macOS.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _THRESHOLD))
