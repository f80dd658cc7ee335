"""Commands that talk to a server which breaks the rules: one line says why, and they end soon and small."""

from __future__ import annotations

import random
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from gearman_twisted.wire.constants import RES, PacketType
from tests.kit.mutations import HTTP, TO_SERVER, mutated
from tests.kit.servers import BIN, PATIENCE

# All that a command may reserve; one that keeps what an endless server sends needs more.
MEMORY = 600_000_000
MIB = 1 << 20


def silent(peer: socket.socket) -> None:
    """Nothing comes."""
    while peer.recv(65536):
        pass


def closed(_peer: socket.socket) -> None:
    """The connection ends at once."""


def garbage(peer: socket.socket) -> None:
    """What somebody else might want."""
    for seed in range(20):
        peer.sendall(b"".join(mutated(random.Random(seed), [*TO_SERVER, *HTTP])))


def endless_line(peer: socket.socket) -> None:
    """A line without an end."""
    while True:
        peer.sendall(b"A" * MIB)


def lie(peer: socket.socket) -> None:
    """A packet that announces 4 GiB, and ends early."""
    peer.sendall(struct.pack(">4sII", RES, PacketType.JOB_CREATED, 0xFFFFFFFF))
    for _ in range(32):
        peer.sendall(bytes(MIB))


def noise(peer: socket.socket) -> None:
    """Packets that nobody asked for."""
    for _ in range(100):
        peer.sendall(struct.pack(">4sII", RES, PacketType.NOOP, 0) * 10_000)


@contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that says the same to all; its port."""

    def serve(peer: socket.socket) -> None:
        with suppress(OSError), peer:
            talk(peer)

    def accept() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listening.accept()
                threading.Thread(target=serve, args=[peer], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE)


COMMANDS = {
    "gearadmin status": ("gearadmin", "--timeout=1", "--status"),
    "gearadmin create": ("gearadmin", "--timeout=1", "--create-function", "f"),
    "gearadmin cancel": ("gearadmin", "--timeout=1", "--cancel-job", "H:x:1"),
    "gearadmin ready": ("gearadmin", "--timeout=1", "--ready"),
    "gearman": ("gearman", "-t", "1000", "-f", "f", "data"),
    "gearman -b": ("gearman", "-t", "1000", "-b", "-f", "f", "data"),
}


def web(peer: socket.socket) -> None:
    """A web server."""
    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("talk", [silent, closed, garbage, endless_line, lie, noise, web])
@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, talk: Callable[[socket.socket], None]) -> None:
    """They fail within their time, with a message and without a traceback."""
    name, *words = COMMANDS[command]
    with server(talk) as port:
        done = subprocess.run(
            ["prlimit", f"--as={MEMORY}", str(BIN / name), "-h", "127.0.0.1", "-p", str(port), *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    assert done.returncode not in (0, -9), done
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert len(done.stderr) < 1000
