"""A disk that loses what was not synced, played from a recording of what a process did to its files.

The recording is one of strace, so it needs neither a device nor a library of its own, and the process is the
one that operators run.
"""

from __future__ import annotations

import os
import random
import re
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.kit.databases import missing
from tests.kit.servers import PATIENCE

# What a disk writes as a whole, or not at all.
SECTOR_BYTES = 512

RECORDED = (
    *("openat", "open", "creat", "unlink", "unlinkat", "rename", "renameat", "renameat2"),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "ftruncate", "truncate", "fallocate"),
    *("fsync", "fdatasync", "sync_file_range", "sendto", "sendmsg", "recvfrom"),
)


def strace(trace: Path) -> list[str]:
    """What a command begins with to be recorded; its process is the command's own, strace runs beside it."""
    return [
        *("strace", "-D", "-f", "-y", "-xx", "-s", "100000000", "--seccomp-bpf"),
        *("-e", f"trace={','.join(RECORDED)}", "-e", "signal=none", "-o", str(trace)),
    ]


@contextmanager
def recorder_of(process: int) -> Iterator[None]:
    """Waits at the end, when a recorded process is to have ended, until its recording is complete."""
    status = Path(f"/proc/{process}/status").read_text()
    tracer = os.pidfd_open(int(status.partition("TracerPid:")[2].split()[0]))
    try:
        yield
        assert select.select([tracer], [], [], PATIENCE)[0], "strace does not end"
    finally:
        os.close(tracer)


class Event(NamedTuple):
    """Something that a process did.

    Attributes:
        call: the name of the system call.
        target: the path of the file or the socket that it is about.
        data: the bytes that were written, sent or received; the new path of a rename.
        number: the offset of a write, the size of a truncation.
    """

    call: str
    target: str
    data: bytes = b""
    number: int = 0


_LINE = re.compile(r"(\d+) +(.*)\n")
_CALL = re.compile(r"(\w+)\((.*)\) += (\d+)(?:<[^>]*>)?$")
_STRING = re.compile(r'"([^"]*)"')
_DESCRIPTOR = re.compile(r"\d+<([^>]*)>")


def events(trace: Path) -> Iterator[Event]:
    """All calls of a recording that came through, in the order of their ends."""
    begun: dict[str, str] = {}
    with trace.open() as lines:
        for line in lines:
            found = _LINE.fullmatch(line)
            assert found is not None, line[:200]
            process, text = found.groups()
            if text.endswith("<unfinished ...>"):
                begun[process] = text.removesuffix("<unfinished ...>")
                continue
            if text.startswith("<... "):
                text = begun.pop(process) + text.partition(" resumed>")[2]
            call = _CALL.fullmatch(text)
            if call is not None:
                yield from _event(*call.groups())


def _event(call: str, words: str, result: str) -> Iterator[Event]:
    strings = [_unhex(text) for text in _STRING.findall(words)]
    target = _DESCRIPTOR.match(words)
    path = _unhex(target[1]).decode() if target is not None else ""
    match call:
        case "openat" | "open" | "creat":
            path = strings[0].decode()
            if "O_CREAT" in words or call == "creat":
                yield Event("create", path)
            if "O_TRUNC" in words or call == "creat":
                yield Event("truncate", path)
        case "pwrite64":
            yield Event("write", path, strings[0][: int(result)], int(words.rpartition(",")[2]))
        case "sendto" | "recvfrom":
            yield Event(call, path, strings[0][: int(result)])
        case "ftruncate":
            yield Event("truncate", path, number=int(words.rpartition(",")[2]))
        case "fsync" | "fdatasync":
            yield Event("sync", path)
        case "unlink":
            yield Event("unlink", strings[0].decode())
        case _:
            # Nothing that the store does to its files today; a disk refuses it for a file of its own.
            yield Event(call, path or (strings[-1].decode() if strings else ""))


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


class _File:
    """The content of a file: what is on the disk, and what may or may not be."""

    def __init__(self) -> None:
        self.synced = b""
        # Of each write its offset and data, of each truncation its size and None.
        self.pending: list[tuple[int, bytes | None]] = []

    def content(self, chance: random.Random | None = None, share: float = 1.0) -> bytes:
        """What is read after a share of what is pending has reached the disk, sector by sector."""
        content = bytearray(self.synced)
        for number, data in self.pending:
            if data is None:
                if chance is None or chance.random() < share:
                    content[number:] = bytes(max(0, number - len(content)))
                continue
            position = 0
            while position < len(data):
                size = SECTOR_BYTES - (number + position) % SECTOR_BYTES
                if chance is None or chance.random() < share:
                    _write(content, number + position, data[position : position + size])
                position += size
        return bytes(content)

    def sync(self) -> None:
        self.synced = self.content()
        self.pending.clear()


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if offset > len(content):
        content += bytes(offset - len(content))
    content[offset : offset + len(data)] = data


class Disk:
    """Some files of a directory.

    Args:
        directory: where they are.
        names: theirs; what happens to others is not looked at.
    """

    def __init__(self, directory: Path, names: set[str]) -> None:
        self._directory = directory
        self._names = names
        self._files: dict[str, _File] = {}
        self._synced_files: dict[str, _File] = {}

    def play(self, event: Event) -> bool:
        """Does what a process did; whether it concerned this disk."""
        path = Path(event.target)
        if path == self._directory and event.call == "sync":
            self._synced_files = dict(self._files)
            return True
        name = path.name
        if path.parent != self._directory or name not in self._names:
            return False
        match event.call:
            case "create":
                self._files.setdefault(name, _File())
            case "write":
                self._files[name].pending.append((event.number, event.data))
            case "truncate":
                self._files[name].pending.append((event.number, None))
            case "sync":
                self._files[name].sync()
            case "unlink":
                del self._files[name]
            case _:
                raise AssertionError(f"this disk does not know {event.call}, done to {event.target}")
        return True

    def content(self) -> dict[str, bytes]:
        """The files as a process reads them."""
        return {name: file.content() for name, file in self._files.items()}

    def after_power_loss(self, chance: random.Random, share: float) -> dict[str, bytes]:
        """The files that are found after a loss of power.

        Args:
            chance: says what reached the disk of all that was not synced.
            share: how much of that, from 0.0 to 1.0.
        """
        found: dict[str, bytes] = {}
        for name in sorted(self._files.keys() | self._synced_files.keys()):
            is_latest = chance.random() < share
            file = (self._files if is_latest else self._synced_files).get(name)
            if file is not None:
                found[name] = file.content(chance, share)
        return found


@contextmanager
def small_disk(size: str = "1M") -> Iterator[Path]:
    """A file system of its own that is soon full, for root; others skip the test."""
    if os.geteuid() != 0:
        missing("only root can mount a small disk")
    with TemporaryDirectory() as directory:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory]).returncode:
            missing("a small disk cannot be mounted here")
        try:
            yield Path(directory)
        finally:
            subprocess.run(["umount", "-l", directory], check=True)


def fill_disk(directory: Path) -> None:
    """Leaves not a block on the disk of a directory."""
    with suppress(OSError), (directory / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))
