"""Input that could keep a server busy: up to 1 MiB from each of ten peers, and what the server has before."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator

import attrs

from benchmarks.programs import RunFailed

PEERS = 10
_INPUT_BYTES = 1 << 20
_TIMEOUT = 120.0
# Types of packets.
CAN_DO, RESET_ABILITIES, PRE_SLEEP, SUBMIT_JOB, GRAB_JOB, WORK_STATUS, ECHO_REQ = 1, 3, 4, 7, 9, 12, 16
SUBMIT_JOB_BG, SUBMIT_JOB_SCHED, GET_STATUS_UNIQUE = 18, 35, 41
_ECHO = struct.pack(">4sII", b"\0REQ", ECHO_REQ, 0)
_ECHOED = struct.pack(">4sII", b"\0RES", ECHO_REQ + 1, 0)


def packet(type_: int, *args: bytes) -> bytes:
    """Return a request."""
    payload = b"\0".join(args)
    return struct.pack(">4sII", b"\0REQ", type_, len(payload)) + payload


@attrs.frozen
class Attack:
    """What ten peers send.

    Attributes:
        summary: it, for the table.
        sends: what a peer sends, by its number; cut after 1 MiB.
        first: what it sends before, which is not measured.
        before: what another peer has sent that stays connected.
        grabs: whether each peer first grabs a job, whose handle replaces ``HANDLE`` in what it sends.
    """

    summary: str
    sends: Callable[[int], Iterable[bytes]]
    first: Callable[[int], Iterable[bytes]] = lambda _number: ()
    before: Callable[[], Iterable[bytes]] = tuple
    grabs: bool = False


HANDLE = b"H:handle:1234567890123456"


def _functions(count: int, name: bytes = b"function") -> Iterator[bytes]:
    return (packet(CAN_DO, b"%b %d" % (name, number)) for number in range(count))


def _queued() -> Iterator[bytes]:
    return (packet(SUBMIT_JOB_BG, b"queued", b"q%d" % number, b"") for number in range(200_000))


def _mixed_lines() -> list[bytes]:
    lines = b"status|prioritystatus|workers|show jobs|show unique jobs|show scheduled|version|getpid|verbose"
    changes = b"cancel job H:x:1|cancel unique function x|create function x|drop function x|maxqueue x 5"
    return [line + b"\n" for line in (lines + b"|" + changes + b"|nonsense").split(b"|")]


ATTACKS = {
    "unique-status": Attack(
        "20,000 GET_STATUS_UNIQUE, with 20,000 functions",
        lambda _: [packet(GET_STATUS_UNIQUE, b"x")] * 20_000,
        before=lambda: _functions(20_000),
    ),
    "scheduled": Attack(
        "1,000 lines `show scheduled`, with 200,000 jobs queued",
        lambda _: [b"show scheduled\n"] * 1_000,
        before=_queued,
    ),
    "recurring": Attack(
        "10,000 SUBMIT_JOB_SCHED for the 30th of February",
        lambda _: [packet(SUBMIT_JOB_SCHED, b"x", b"", b"0", b"0", b"30", b"2", b"*", b"")] * 10_000,
    ),
    "leap-day": Attack(
        "10,000 SUBMIT_JOB_SCHED for the 29th of February",
        lambda n: (
            packet(SUBMIT_JOB_SCHED, b"x", b"%d %d" % (n, each), b"0", b"0", b"29", b"2", b"*", b"")
            for each in range(10_000)
        ),
    ),
    "progress": Attack(
        "1,000 WORK_STATUS for a job that was submitted 10,000 times with one unique",
        lambda _: [packet(WORK_STATUS, HANDLE, b"1", b"2")] * 1_000,
        lambda n: [
            *[packet(SUBMIT_JOB, b"joined %d" % n, b"unique", b"")] * 10_000,
            packet(CAN_DO, b"joined %d" % n),
        ],
        grabs=True,
    ),
    "drop": Attack(
        "5,000 lines `drop function x`, with 20,000 functions",
        lambda _: [b"drop function x\n"] * 5_000,
        before=lambda: _functions(20_000),
    ),
    "grabs": Attack(
        "5,000 GRAB_JOB of workers with 10,000 functions, with 10,000 others that have jobs",
        lambda _: [packet(GRAB_JOB)] * 5_000,
        lambda _: _functions(10_000),
        lambda: (packet(SUBMIT_JOB_BG, b"ready %d" % number, b"", b"") for number in range(10_000)),
    ),
    "status": Attack(
        "1 MiB of lines `status`, with 20,000 functions",
        lambda _: [b"status\n"] * 150_000,
        before=lambda: _functions(20_000),
    ),
    "workers": Attack(
        "1 MiB of lines `workers`, with a worker of 20,000 functions",
        lambda _: [b"workers\n"] * 140_000,
        before=lambda: _functions(20_000),
    ),
    "jobs": Attack(
        "1,000 lines `show jobs`, with 200,000 jobs queued",
        lambda _: [b"show jobs\n"] * 1_000,
        before=_queued,
    ),
    "lines": Attack(
        "1 MiB of all text commands, with 20,000 functions",
        lambda _: _mixed_lines() * 6_000,
        before=lambda: _functions(20_000),
    ),
    "names": Attack(
        "1 MiB of CAN_DO for new functions, and RESET_ABILITIES",
        lambda n: [*_functions(35_000, b"new %d" % n), packet(RESET_ABILITIES)],
    ),
    "abilities": Attack(
        "1 MiB of RESET_ABILITIES and CAN_DO, with 10,000 functions each at the start",
        lambda _: [packet(RESET_ABILITIES), packet(CAN_DO, b"x")] * 45_000,
        lambda _: _functions(10_000),
    ),
    "tiny": Attack("87,000 PRE_SLEEP", lambda _: [packet(PRE_SLEEP)] * 87_000),
    "echoes": Attack("87,000 ECHO_REQ", lambda _: [_ECHO] * 87_000),
    "joined": Attack(
        "1 MiB of SUBMIT_JOB with one unique for all",
        lambda _: [packet(SUBMIT_JOB, b"joined", b"unique", b"")] * 45_000,
    ),
    "collisions": Attack(
        "1 MiB of SUBMIT_JOB, each with a unique that another peer uses too",
        lambda _: (packet(SUBMIT_JOB, b"joined", b"u%d" % each, b"") for each in range(40_000)),
    ),
    "submissions": Attack(
        "1 MiB of SUBMIT_JOB; then the clients leave",
        lambda _: [packet(SUBMIT_JOB, b"left", b"", b"")] * 55_000,
    ),
    "cancels": Attack(
        "1 MiB of lines `cancel unique`, with 200,000 jobs queued",
        lambda n: (b"cancel unique queued q%d\n" % (n * 20_000 + each) for each in range(20_000)),
        before=_queued,
    ),
}
"""All of it, by name."""


class Attackers:
    """Peers that are ready to send.

    Args:
        port: where to.
        attack: what.
        count: how many they are.

    Raises:
        RunFailed: what they send first was not answered.
    """

    def __init__(self, port: int, attack: Attack, count: int = PEERS) -> None:
        self._port = port
        self._inputs: list[tuple[socket.socket, bytes]] = []
        self._others = self._connected(attack.before())
        for number in range(count):
            peer = self._connected(attack.first(number))
            data = b"".join(attack.sends(number))
            if attack.grabs:
                data = data.replace(HANDLE, _grabbed(peer))
            self._inputs.append((peer, _cut(data)))

    def send(self, deadline: float) -> bool:
        """Send all, read and drop the answers, and leave; returns whether all was answered in time."""
        is_done = _exchange(self._inputs, deadline)
        for peer, _ in self._inputs:
            peer.close()
        return is_done

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for peer in (self._others, *(peer for peer, _ in self._inputs)):
            peer.close()

    def _connected(self, packets: Iterable[bytes]) -> socket.socket:
        """Return a connection on which that was sent and handled."""
        peer = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
        if not _exchange([(peer, b"".join(packets))], time.monotonic() + _TIMEOUT):
            raise RunFailed("the server did not answer before the attack began")
        return peer


def _exchange(inputs: Iterable[tuple[socket.socket, bytes]], deadline: float) -> bool:
    """Send, and drop answers up to that to an echo request behind it all; returns whether it came in time."""
    left: dict[int, memoryview] = {}
    tails: dict[int, bytes] = {}
    peers: dict[int, socket.socket] = {}
    poll = select.poll()
    for peer, data in inputs:
        number = peer.fileno()
        peer.setblocking(False)
        peers[number], left[number], tails[number] = peer, memoryview(data + _ECHO), b""
        poll.register(number, select.POLLIN | select.POLLOUT)
    while peers and time.monotonic() < deadline:
        for number, events in poll.poll(100):
            is_closed = False
            try:
                if events & select.POLLOUT:
                    with contextlib.suppress(BlockingIOError):
                        left[number] = left[number][peers[number].send(left[number]) :]
                    if not left[number]:
                        poll.modify(number, select.POLLIN)
                if events & select.POLLIN:
                    tails[number] = (tails[number] + peers[number].recv(1 << 18))[-len(_ECHOED) :]
            except ConnectionError:
                is_closed = True  # it asked for more than a peer may leave unread
            if is_closed or (tails[number] == _ECHOED and not left[number]):
                poll.unregister(number)
                peers.pop(number).settimeout(_TIMEOUT)
    return not peers


def _grabbed(peer: socket.socket) -> bytes:
    """Return the handle of a job that a worker grabs."""
    peer.sendall(packet(GRAB_JOB))
    return peer.recv(1 << 16)[12:].partition(b"\0")[0]


def _cut(data: bytes) -> bytes:
    """Return what is whole within 1 MiB."""
    if len(data) <= _INPUT_BYTES:
        return data
    end = data.rfind(b"\0REQ" if data.startswith(b"\0") else b"\n", 0, _INPUT_BYTES)
    return data[: end if data.startswith(b"\0") else end + 1]
