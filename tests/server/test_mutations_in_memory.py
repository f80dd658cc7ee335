"""Mutated conversations on a server in memory: all follows from the seed, and nothing is left over."""

from __future__ import annotations

import os
import random
import secrets
import time

import pytest
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from gearman_twisted.errors import StoreUnavailable
from gearman_twisted.server.settings import ConnectionLimits
from tests.kit.http_server import Server
from tests.kit.mutations import GIVEN_HANDLE, HANDLE, HTTP, TO_SERVER, mutated, with_handle

LIMITS = ConnectionLimits(max_packet_bytes=100_000, max_output_bytes=200_000, max_unsaved_jobs=20)


class _Transport(StringTransport):
    """A transport that can be aborted."""

    def abortConnection(self) -> None:
        """Close at once."""
        self.disconnecting = True


class Mutant:
    """A connection in memory that sends mutated conversations."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        is_http = chance.random() < 0.15
        conversations = HTTP if is_http else TO_SERVER
        self._server = server
        self._pieces = [piece for _ in range(6) for piece in mutated(chance, conversations)]
        self._handle = HANDLE
        self._protocol = (server.http if is_http else server.factory).buildProtocol(None)
        self._transport = _Transport()
        self._protocol.makeConnection(self._transport)

    def go_on(self) -> bool:
        """Send the next piece if the server reads; returns whether there is more to send."""
        for given in GIVEN_HANDLE.finditer(self._transport.value()):
            self._handle = given[1]
        self._transport.clear()
        if self._transport.disconnecting:
            return False
        if self._pieces and self._transport.producerState == "producing":
            piece = self._pieces.pop(0)
            self._protocol.dataReceived(with_handle(piece, self._handle, self._server.clock.seconds()))
        return bool(self._pieces)

    def close(self) -> None:
        """End the connection."""
        self._protocol.connectionLost(Failure(ConnectionDone()))


def finish_commits(server: Server, chance: random.Random, *, is_last: bool = False) -> None:
    """End the commit that runs, mostly well; at last all of them."""
    commits = server.store.commits
    while commits and not commits[-1][2].called:
        fails = not is_last and chance.random() < 0.1
        server.store.finish(StoreUnavailable("mutated") if fails else None)
        if not is_last:
            break


def settle(server: Server, chance: random.Random) -> None:
    """Let all be done that can be."""
    for _ in range(4):
        finish_commits(server, chance, is_last=True)
        server.clock.advance(60)


def saved(server: Server) -> set[int]:
    """What the store has, as far as it was told."""
    ids: set[int] = set()
    for jobs, forgets, done in server.store.commits:
        assert done.called
        ids = (ids | {job.id for job in jobs}) - set(forgets)
    return ids


def play(seed: int) -> None:
    """A server's life with many mutated conversations; checks that nothing is left at the end."""
    chance = random.Random(seed)
    server = Server(durable=True, limits=LIMITS)
    mutants: list[Mutant] = []
    for _ in range(chance.choice((50, 2000))):
        if len(mutants) < 6:
            mutants.append(Mutant(server, chance))
        mutant = chance.choice(mutants)
        if not mutant.go_on() and chance.random() < 0.7:
            mutants.remove(mutant)
            mutant.close()
        if chance.random() < 0.5:
            finish_commits(server, chance)
        server.clock.advance(chance.choice((0.0,) * 20 + (0.01, 1.5, 30.0, 90.0)))
    for mutant in mutants:
        mutant.close()
    settle(server, chance)
    for line in (server.text(b"show jobs") + server.text(b"show scheduled")).splitlines():
        if line != b".":
            server.text(b"cancel job " + line.split(b"\t")[0])
    settle(server, chance)
    assert server.engine.inspection.leftovers() == {}
    assert saved(server) == set()


def play_and_look(seed: int) -> None:
    """The same; nothing may be logged as a bug."""
    with capturedLogs() as logged:
        play(seed)
    bugs = [event["log_failure"].getTraceback() for event in logged if "log_failure" in event]
    assert bugs == []


def test_mutated_conversations() -> None:
    """Some of them; a failure prints the seed."""
    first = secrets.randbits(32)
    for seed in range(first, first + 10):
        print(f"MUTATION_SEED={seed}")  # noqa: T201
        play_and_look(seed)


@pytest.mark.soak
def test_mutated_conversations_for_long(capsys: pytest.CaptureFixture[str]) -> None:
    """Many of them.

    The variable MUTATION_SEED is the seed of the first server, MUTATION_SECONDS says how long it takes.
    """
    first = seed = int(os.environ.get("MUTATION_SEED") or secrets.randbits(32))
    end = time.monotonic() + float(os.environ.get("MUTATION_SECONDS") or 20)
    while time.monotonic() < end or seed == first:
        print(f"MUTATION_SEED={seed}")  # noqa: T201
        play_and_look(seed)
        seed += 1
    with capsys.disabled():
        print(f"\n    MUTATION_SEED={first}: {seed - first} servers", end="")  # noqa: T201
