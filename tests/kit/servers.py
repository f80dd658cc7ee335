"""Real processes and real sockets for tests: our servers, and a peer that speaks raw packets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet

if TYPE_CHECKING:
    from typing_extensions import Self

# The console scripts stand beside the interpreter that runs the tests.
BIN = Path(sys.executable).parent
PATIENCE = 30.0


class WirePeer:
    """A blocking connection to a server, packet by packet."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = Decoder(RES)
        self._packets: list[Packet] = []

    def __enter__(self) -> WirePeer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, type_: PacketType, *args: bytes) -> None:
        """Send one packet."""
        self.socket.sendall(encode(REQ, type_, *args))

    def receive(self) -> Packet | None:
        """The next packet; None when the server has closed the connection."""
        while not self._packets:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._packets += self._decoder.feed(data)
        return self._packets.pop(0)

    def ask(self, type_: PacketType, *args: bytes) -> Packet | None:
        """Send a packet and return the next one that comes."""
        self.send(type_, *args)
        return self.receive()

    def text(self, line: bytes, end: bytes) -> bytes:
        """Send a text command and return its answer, which ends with ``end``."""
        self.socket.sendall(line + b"\n")
        answer = b""
        while not answer.endswith(end):
            data = self.socket.recv(65536)
            assert data, f"closed after {answer!r}"
            answer += data
        return answer

    def drain(self, function: bytes) -> Iterator[bytes]:
        """Work off all jobs of a function that are queued now; yield their workloads."""
        self.send(PacketType.CAN_DO, function)
        while (packet := self.ask(PacketType.GRAB_JOB)) is not None and packet.type == PacketType.JOB_ASSIGN:
            self.send(PacketType.WORK_COMPLETE, packet.args[0], b"")
            yield packet.args[2]


class ServerProcess:
    """A job server in a process of its own, in the foreground, on a free port of loopback.

    Args:
        directory: its working directory; the log goes to ``server.log`` there.
        words: the command.
        environment: what is different in its environment.
    """

    def __init__(self, directory: Path, *words: str | Path, **environment: str) -> None:
        self.log = directory / "server.log"
        self.process = subprocess.Popen(
            words,
            cwd=directory,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.banner = ""
        for line in self.process.stdout:
            self.banner += line
            if "gearadmin" in line:  # the last of what it says
                break
        else:
            raise AssertionError(f"the server ended: {self.process.communicate()}")
        self.port = int(self.banner.partition("127.0.0.1:")[2].split()[0].rstrip(","))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        self.process.send_signal(number)
        self.printed = "".join(self.process.communicate(timeout=PATIENCE))
        return self.process.returncode


class TwistdGearman(ServerProcess):
    """A ``twistd gearman``.

    Args:
        directory: where it runs.
        args: further words for it.
    """

    def __init__(self, directory: Path, *args: str) -> None:
        super().__init__(
            directory,
            BIN / "twistd",
            "--nodaemon",
            "--pidfile=",
            f"--logfile={directory / 'server.log'}",
            "gearman",
            "--listen=tcp:0:interface=127.0.0.1",
            *args,
        )
        # It says where it is before it has read its store, and shows what it has read so far.
        with WirePeer(self.port) as peer:
            while peer.text(b"ready", b"\n") != b"OK\r\n":
                time.sleep(0.01)


def resident_bytes(server: ServerProcess) -> int:
    """How much memory a server takes."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(*words: str | Path, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end."""
    return subprocess.run(
        words, input=stdin, capture_output=True, timeout=PATIENCE, env={**os.environ, **environment}
    )
