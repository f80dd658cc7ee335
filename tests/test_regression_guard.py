"""What a job costs the server, counted and not timed: calls in Python, and calls of the system.

The same scripts are played to a server in memory and to one in a process of its own that strace watches. They
are small versions of ``sync``, ``busy`` and ``queue`` in ``benchmarks/``. Peers go on only when they have the
answers that they wait for, so the counts are the same each time. Where a bound is passed, either something
became dearer by accident, or it is worth it: then the bound is raised, in the commit that says why.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import pytest
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

import gearman_twisted
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.server_rig import ServerRig
from tests.kit.servers import BIN, PATIENCE, ServerProcess, WirePeer

P = PacketType
OURS = str(Path(gearman_twisted.__file__).parent)

# Of each script as many jobs, so that what comes once, such as connecting, weighs little.
JOBS = 512

# Calls that code of ours makes or receives, of functions in Python and in C, for a job.
# Counted with Python 3.11: 279.1, 140.8 and 124.4. Versions of Python differ a little. The transport in
# memory does not say that all was sent, so the server looks how much waits; over plain TCP it need not.
MOST_PYTHON_CALLS = {"sync": 290.0, "busy": 147.0, "queue": 130.0}

# Calls of the system for a job. Counted: 18.05, 5.79 and 4.33, each with its share of connecting. Of these,
# one in each turn asks which peers are ready; it is cheaper than what Twisted does for each without it.
MOST_SYSTEM_CALLS = {"sync": 18.3, "busy": 6.0, "queue": 4.5}

# Not the server's choice: whether the clock is read without a call depends on the machine, and when memory is
# asked for on the C library.
UNCOUNTED = {"clock_gettime", "gettimeofday", "time", "brk", "mmap", "munmap", "mremap", "madvise", "futex"}


class Connection(Protocol):
    """A peer of the server, in memory or over a socket."""

    def send(self, *packets: bytes) -> None:
        """Sends packets, in one piece."""

    def receive(self, count: int) -> list[Packet]:
        """The next packets, so many."""


Connect = Callable[[], Connection]


def expect(connection: Connection, *types: PacketType) -> list[Packet]:
    """The next packets, which have to be of these types."""
    packets = connection.receive(len(types))
    assert [packet.type for packet in packets] == list(types)
    return packets


def work(worker: Connection, assigned: list[Packet], *, goes_on: bool) -> None:
    """Ends a job, and asks for the next in the same piece."""
    done = encode(REQ, P.WORK_COMPLETE, assigned[0].args[0], assigned[0].args[2])
    worker.send(done + encode(REQ, P.GRAB_JOB) if goes_on else done)


def sync(connect: Connect) -> None:
    """One job at a time, for a worker that sleeps in between."""
    client, worker = connect(), connect()
    worker.send(encode(REQ, P.CAN_DO, b"f"), encode(REQ, P.PRE_SLEEP))
    for _ in range(JOBS):
        client.send(encode(REQ, P.SUBMIT_JOB, b"f", b"", b"workload"))
        expect(client, P.JOB_CREATED)
        expect(worker, P.NOOP)
        worker.send(encode(REQ, P.GRAB_JOB))
        work(worker, expect(worker, P.JOB_ASSIGN), goes_on=True)
        expect(client, P.WORK_COMPLETE)
        expect(worker, P.NO_JOB)
        # Or else the next job might come in the same turn, and might not.
        worker.send(encode(REQ, P.PRE_SLEEP), encode(REQ, P.ECHO_REQ, b""))
        expect(worker, P.ECHO_RES)


def busy(connect: Connect) -> None:
    """Four clients with eight jobs each, and four workers that find a job whenever they ask."""
    clients = [connect() for _ in range(4)]
    workers = [connect() for _ in range(4)]
    for worker in workers:
        worker.send(encode(REQ, P.CAN_DO, b"f"))
    for _ in range(JOBS // 32):
        for client in clients:
            client.send(*[encode(REQ, P.SUBMIT_JOB, b"f", b"", b"workload")] * 8)
            expect(client, *[P.JOB_CREATED] * 8)
        drain(workers, 8)
        for client in clients:
            expect(client, *[P.WORK_COMPLETE] * 8)


def queue(connect: Connect) -> None:
    """Background jobs from four clients, 32 in a piece; then four workers."""
    clients = [connect() for _ in range(4)]
    for piece in range(JOBS // 128):
        for position, client in enumerate(clients):
            uniques = [b"%d-%d-%d" % (position, piece, number) for number in range(32)]
            client.send(*[encode(REQ, P.SUBMIT_JOB_BG, b"f", unique, b"workload") for unique in uniques])
            expect(client, *[P.JOB_CREATED] * 32)
    workers = [connect() for _ in range(4)]
    for worker in workers:
        worker.send(encode(REQ, P.CAN_DO, b"f"))
    drain(workers, JOBS // 4)


def drain(workers: list[Connection], jobs: int) -> None:
    """Has each worker work off so many jobs, one worker after the other, so that no two share a turn."""
    assigned = []
    for worker in workers:
        worker.send(encode(REQ, P.GRAB_JOB))
        assigned.append(expect(worker, P.JOB_ASSIGN))
    for left in reversed(range(jobs)):
        for number, worker in enumerate(workers):
            work(worker, assigned[number], goes_on=left > 0)
            assigned[number] = expect(worker, P.JOB_ASSIGN) if left else []


SCRIPTS: dict[str, Callable[[Connect], None]] = {"sync": sync, "busy": busy, "queue": queue}

every_script = pytest.mark.parametrize("name", SCRIPTS)


# Calls in Python.


class CallCounter:
    """Counts the calls that code of ours makes, and those that it receives."""

    def __init__(self) -> None:
        self.calls = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Counts in here; what else may count calls goes on afterwards."""
        before = sys.getprofile()
        sys.setprofile(self._profile)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _profile(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event == "c_call":  # the frame is that of the caller
            self.calls += _is_ours(frame)
        elif event == "call":
            self.calls += _is_ours(frame) or _is_ours(frame.f_back)


def _is_ours(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith(OURS)


class MemoryConnection:
    """A connection to a factory, in memory."""

    def __init__(self, factory: Factory, clock: Clock, counter: CallCounter) -> None:
        self._clock = clock
        self._counter = counter
        self._transport = StringTransport()
        self._decoder = Decoder(RES)
        self._packets: list[Packet] = []
        protocol = factory.buildProtocol(None)
        assert protocol is not None
        self._protocol = protocol
        self._protocol.makeConnection(self._transport)

    def send(self, *packets: bytes) -> None:
        """Sends packets, and ends the turn."""
        data = b"".join(packets)
        with self._counter.counting():
            self._protocol.dataReceived(data)
            self._clock.advance(0)

    def receive(self, count: int) -> list[Packet]:
        """The next packets, which have to be there."""
        self._packets += self._decoder.feed(self._transport.value())
        self._transport.clear()
        taken, self._packets = self._packets[:count], self._packets[count:]
        return taken


def python_calls(name: str) -> float:
    """How many calls a job of a script takes."""
    rig = ServerRig()
    counter = CallCounter()
    SCRIPTS[name](lambda: MemoryConnection(rig.factory, rig.clock, counter))
    assert not rig.engine.job_count
    return counter.calls / JOBS


@every_script
def test_python_calls_of_a_job(name: str) -> None:
    """A job takes no more calls in Python than it did."""
    calls = python_calls(name)
    most = MOST_PYTHON_CALLS[name]
    assert calls <= most, (
        f"{name}: {calls:.1f} calls in Python for a job, counted in the server's own code with {JOBS} jobs; "
        f"the bound is {most}"
    )


def test_python_calls_are_counted_the_same_each_time() -> None:
    """The count of calls in Python follows from the code alone."""
    assert python_calls("busy") == python_calls("busy")


# Calls of the system.


class SocketConnection:
    """A connection to a server in another process.

    Args:
        peer: what speaks to it.
    """

    def __init__(self, peer: WirePeer) -> None:
        self._peer = peer

    def send(self, *packets: bytes) -> None:
        """Sends packets, in one piece."""
        self._peer.socket.sendall(b"".join(packets))

    def receive(self, count: int) -> list[Packet]:
        """Waits for the next packets, so many."""
        packets = (self._peer.receive() for _ in range(count))
        return [packet for packet in packets if packet is not None]

    def echo(self, data: bytes) -> None:
        """Has the server send something back."""
        self.send(encode(REQ, P.ECHO_REQ, data))
        expect(self, P.ECHO_RES)


def missing(reason: str) -> NoReturn:
    """Skips a test that needs what is not here; where everything has to be, fails it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def strace() -> str:
    """The program, if it may watch other processes here."""
    found = shutil.which("strace")
    if found is None:
        missing("strace is not installed; on Debian: apt-get install strace")
    tried = subprocess.run([found, "-o", os.devnull, "true"], capture_output=True, text=True)
    if tried.returncode:
        missing(f"strace may not watch processes here: {tried.stderr.strip()}")
    return found


def system_calls(name: str, directory: Path) -> dict[str, float]:
    """How many system calls a job of a script takes, by their names."""
    trace = directory / "trace"
    words: list[str | Path] = [
        strace(),
        "--follow-forks",
        "-o",
        trace,
        BIN / "twistd",
        "--nodaemon",
        "--pidfile=",
    ]
    words += [f"--logfile={directory / 'server.log'}", "gearman", "--store=memory:", "--allow-shutdown"]
    with ServerProcess(directory, *words, "--listen=tcp:0:interface=127.0.0.1") as server:
        with ExitStack() as stack:

            def connect() -> SocketConnection:
                connection = SocketConnection(stack.enter_context(WirePeer(server.port)))
                # One at a time: the server accepts all that wait in one turn.
                connection.echo(b"")
                return connection

            marker = connect()
            marker.echo(b"the script begins")
            SCRIPTS[name](connect)
            marker.echo(b"the script ends")
        with WirePeer(server.port) as operator:
            operator.socket.sendall(b"shutdown\n")
            server.process.communicate(timeout=PATIENCE)
    text = trace.read_text("utf-8", "replace")
    counted = text[text.index("the script begins") : text.index("the script ends")]
    # A line is a call, but that a call which another thread interrupts has a second one.
    names = [name for name in re.findall(r"^\d+ +(\w+)\(", counted, re.MULTILINE) if name not in UNCOUNTED]
    assert names
    return {name: names.count(name) / JOBS for name in sorted(set(names))}


@every_script
def test_system_calls_of_a_job(name: str, tmp_path: Path) -> None:
    """A job takes no more system calls than it did."""
    calls = system_calls(name, tmp_path)
    most = MOST_SYSTEM_CALLS[name]
    listed = ", ".join(f"{count:.2f} {call}" for call, count in calls.items())
    assert sum(calls.values()) <= most, (
        f"{name}: {sum(calls.values()):.2f} system calls of the server for a job, counted by strace with "
        f"{JOBS} jobs: {listed}; the bound is {most}"
    )
