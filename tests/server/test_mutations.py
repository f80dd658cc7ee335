"""Mutated conversations on a server that others use: nothing breaks it, and the others notice nothing."""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.load import LATER, Ledger, Load, drain
from tests.kit.mutations import GIVEN_HANDLE, HANDLE, HTTP, TO_SERVER, mutated, with_handle
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer, wait_until

P = PacketType
MIB = 1024 * 1024

# Connections of each thread that are open at a time.
OPEN = 8
THREADS = 2
# What a server may keep for good beside jobs: names of functions, and free space between objects. On a quiet
# machine more is sent, and more than 100 MiB are kept; malloc_trim() gives half of it back.
MEMORY_GROWTH = 512 * MIB
# What a server logs of its own bugs.
BUGS = re.compile(r"Traceback|internal error|Bug in|Unhandled|never retrieved|MemoryError|exceptions\.")


class Mutant:
    """A connection that sends mutated conversations, and ends as it comes.

    Args:
        port: where to.
        chance: decides everything.
        conversations: what is mutated.
    """

    def __init__(self, port: int, chance: random.Random, conversations: Sequence[Sequence[bytes]]) -> None:
        self._chance = chance
        count = chance.choice((1, 2, 6))
        self._pieces = [piece for _ in range(count) for piece in mutated(chance, conversations)]
        self._handle = HANDLE
        self._reads = chance.random() < 0.8
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        self._socket.setblocking(False)

    def go_on(self) -> bool:
        """Send the next piece, and read what has come; returns whether there is more to send."""
        try:
            if self._reads:
                self._read()
            if self._pieces:
                self._socket.send(with_handle(self._pieces.pop(0), self._handle, time.time()))
        except BlockingIOError:
            pass
        except OSError:
            return False
        return bool(self._pieces)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError
            for given in GIVEN_HANDLE.finditer(data):
                self._handle = given[1]

    def close(self) -> None:
        """End the connection: at once, half, or as usual."""
        how = self._chance.randrange(3)
        with suppress(OSError):
            if how == 0:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif how == 1:
                self._socket.shutdown(socket.SHUT_WR)
                self._read()
        self._socket.close()


def mutate(ports: Sequence[int], seed: int, goes_on: Callable[[], bool]) -> int:
    """Send mutated conversations over several connections at a time; returns over how many in total."""
    chance = random.Random(seed)
    gearman, http = ports
    count = 0
    mutants: list[Mutant] = []
    while goes_on():
        while len(mutants) < OPEN:
            is_http = chance.random() < 0.15
            port, conversations = (http, HTTP) if is_http else (gearman, TO_SERVER)
            mutants.append(Mutant(port, random.Random(chance.getrandbits(64)), conversations))
            count += 1
        mutant = chance.choice(mutants)
        # Some say nothing more for a while, and keep what they have.
        if not mutant.go_on() and chance.random() < 0.7:
            mutants.remove(mutant)
            mutant.close()
    for mutant in mutants:
        mutant.close()
    return count


def round_trips(port: int, goes_on: Callable[[], bool]) -> int:
    """Have foreground jobs done, one after the other, and check each answer; returns how many."""
    count = 0
    with WirePeer(port) as client, WirePeer(port) as worker:
        worker.send(P.CAN_DO, b"healthy")
        while goes_on():
            workload = b"work %d" % count * (1 + count % 50)
            created = client.ask(P.SUBMIT_JOB, b"healthy", b"healthy %d" % count, workload)
            assert created is not None
            assert created.type == P.JOB_CREATED, created
            [handle] = created.args
            assert worker.ask(P.GRAB_JOB) == Packet(P.JOB_ASSIGN, [handle, b"healthy", workload])
            worker.send(P.WORK_STATUS, handle, b"1", b"2")
            assert client.receive() == Packet(P.WORK_STATUS, [handle, b"1", b"2"])
            status = Packet(P.STATUS_RES, [handle, b"1", b"1", b"1", b"2"])
            assert client.ask(P.GET_STATUS, handle) == status
            worker.send(P.WORK_COMPLETE, handle, workload[::-1])
            assert client.receive() == Packet(P.WORK_COMPLETE, [handle, workload[::-1]])
            assert client.ask(P.ECHO_REQ, workload) == Packet(P.ECHO_RES, [workload])
            count += 1
    return count


def cancel_others(operator: WirePeer, kept: set[bytes]) -> set[bytes]:
    """Cancel all jobs but some; returns the functions that have jobs then."""
    lines = operator.text(b"show jobs", b".\n") + operator.text(b"show scheduled", b".\n")
    for line in lines.splitlines():
        handle = line.split(b"\t")[0]
        if handle not in (b".", *kept):
            operator.text(b"cancel job " + handle, b"\r\n")
    return set(totals(operator))


def totals(operator: WirePeer) -> dict[bytes, int]:
    """How many jobs each function has that has any."""
    rows = [line.rsplit(b"\t", 3) for line in operator.text(b"status", b".\n").splitlines()[:-1]]
    return {name: int(total) for name, total, *_ in rows if int(total)}


def resident_bytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


@contextmanager
def twistd_gearman(directory: Path) -> Iterator[tuple[TwistdGearman, tuple[int, int]]]:
    """A server that takes HTTP too, and its ports; once it has been ended, no bug may be in its log."""
    with TwistdGearman(directory, "--http=tcp:0:interface=127.0.0.1") as server:
        http = re.search(r"HTTP on +127\.0\.0\.1:(\d+)\n", server.banner)
        assert http is not None
        yield server, (server.port, int(http[1]))
        assert server.process.returncode == 0
    log = server.log.read_text()
    found = BUGS.search(log)
    assert found is None, log[max(0, found.start() - 500) : found.start() + 4000]


def campaign(directory: Path, seconds: float, seed: int) -> str:
    """Mutate for so long, and check all that was promised; returns what happened."""
    chance = random.Random(seed)
    ledger = Ledger()
    end = time.monotonic() + seconds
    stops = threading.Event()

    def goes_on() -> bool:
        return time.monotonic() < end and not stops.is_set()

    with twistd_gearman(directory) as (server, ports), WirePeer(server.port) as operator:
        process = server.process.pid
        assert totals(operator) == {}
        opened, resident = descriptors(process), resident_bytes(process)
        with (
            Load(server.port, ledger, random.Random(chance.getrandbits(64)), submits_later=True) as load,
            ThreadPoolExecutor(THREADS + 1) as pool,
        ):
            healthy = pool.submit(round_trips, server.port, goes_on)
            mutants = [pool.submit(mutate, ports, chance.getrandbits(64), goes_on) for _ in range(THREADS)]
            try:
                count, trips = sum(each.result() for each in mutants), healthy.result()
            finally:
                stops.set()
            load.stop_clients()
            ledger.await_(lambda: ledger.waiting <= 0)
        wait_until(lambda: descriptors(process) <= opened)
        kept = {each.handle: each.submission for each in ledger.promises if each.submission.function == LATER}
        later = set(kept)
        wait_until(lambda: cancel_others(operator, later) <= {LATER})
        assert totals(operator).get(LATER, 0) == len(later)
        growth = resident_bytes(process) - resident - sum(len(each.workload) + 1024 for each in kept.values())
        assert growth < MEMORY_GROWTH, f"{growth // MIB} MiB more than at the start"
        assert server.end() == 0
    with twistd_gearman(directory) as (server, _), WirePeer(server.port) as operator:
        assert totals(operator).get(LATER, 0) == len(later)
        drain(server.port, ledger, chance)
        assert server.end() == 0
    assert ledger.check() == []
    assert (ledger.repeats, ledger.refused) == (0, 0)
    return (
        f"{count} mutated connections beside {trips} round trips; {ledger}; {len(later)} after a restart; "
        f"{growth / MIB:.1f} MiB more"
    )


def test_mutated_conversations(tmp_path: Path) -> None:
    """Two seconds of it; ``test_mutated_conversations_for_long`` repeats them with the seed."""
    seed = secrets.randbits(32)
    print(f"MUTATION_SEED={seed}")  # noqa: T201
    campaign(tmp_path, 2, seed)


@pytest.mark.soak
def test_mutated_conversations_for_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Others are answered right meanwhile; the server keeps nothing, loses nothing, and logs no bug.

    The variable MUTATION_SEED repeats what an earlier run sent, MUTATION_SECONDS says how long it takes.
    """
    seed = int(os.environ.get("MUTATION_SEED") or secrets.randbits(32))
    seconds = float(os.environ.get("MUTATION_SECONDS") or 5)
    with capsys.disabled():
        print(f"\n    MUTATION_SEED={seed}", end="", flush=True)  # noqa: T201
        print(f": {campaign(tmp_path, seconds, seed)}", end="", flush=True)  # noqa: T201


def test_every_packet_is_mutated() -> None:
    """No packet of the protocol is missing in the conversations."""
    pieces = [piece for conversation in TO_SERVER for piece in conversation]
    sent = {struct.unpack_from(">I", piece, 4)[0] for piece in pieces if not piece[0]}
    assert sent == set(P) - {P.BAD_STREAM, P.BAD_PACKET, P.TEXT_LINE}
