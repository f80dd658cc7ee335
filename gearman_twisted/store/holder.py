"""Which job server uses a store, in words that tell another server whether it still runs."""

from __future__ import annotations

import os
import socket
from hashlib import blake2b
from pathlib import Path

import attrs

_MARK = "gearman"
_UNKNOWN = "-"


@attrs.frozen
class Holder:
    """A process that uses a store.

    Attributes:
        process: its process id.
        machine: its machine since the boot, and its namespaces; ``-`` if not known.
        started: when it started, in the kernel's ticks since the boot; ``-`` if not known.
        host: the machine's name, which may be cut off.
    """

    process: int
    machine: str
    started: str
    host: str

    @classmethod
    def me(cls) -> Holder:
        """Return this process. Not to be kept: it is another one after a fork."""
        process = os.getpid()
        return cls(process, machine(), _started(process), socket.gethostname())

    @classmethod
    def parse(cls, text: str) -> Holder | None:
        """Return the process that ``str`` made a text of; None if the text is something else."""
        words = text.split(" ", 4)
        if len(words) != 5 or words[0] != _MARK or not (words[1].isascii() and words[1].isdecimal()):
            return None
        return cls(int(words[1]), *words[2:])

    def __str__(self) -> str:
        return f"{_MARK} {self.process} {self.machine} {self.started} {self.host}"

    def describe(self) -> str:
        """Return it for an operator."""
        return f"process {self.process} on {self.host}"

    def is_alive(self) -> bool | None:
        """Return whether it runs; None if that cannot be known from here.

        False is certain. Process ids mean nothing on another machine, after a boot, or in another container;
        a process that got the id of a dead one has another start.
        """
        if self.machine == _UNKNOWN or self.machine != machine():
            return None
        try:
            os.kill(self.process, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except OSError:
            pass  # it runs, as another user
        now = _started(self.process)
        return now == self.started or _UNKNOWN in {now, self.started}


def machine() -> str:
    """Return a short digest for this machine since its boot and its namespaces; ``-`` if not known."""
    try:
        if Path("/proc/self").readlink() != Path(str(os.getpid())):
            return _UNKNOWN  # it shows another namespace
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        # The number of a namespace is reused only when all of its processes are dead. Old kernels have no
        # namespaces of time, which process starts depend on.
        links = [Path(f"/proc/self/ns/{kind}") for kind in ("pid", "time")]
        spaces = [str(link.readlink()) for link in links if link.is_symlink()]
    except OSError:
        return _UNKNOWN
    return blake2b(f"{boot!r} {spaces}".encode(), digest_size=6).hexdigest()


def _started(process: int) -> str:
    try:
        # The name of the command, in parentheses, may contain anything.
        return Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return _UNKNOWN
