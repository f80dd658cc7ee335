"""A server that answers clients and workers with whatever chance makes of the right answers."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from twisted.logger import capturedLogs, formatEvent

from gearman_twisted.wire.codec import Decoder
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.loops import AsyncioTestLoop, MemoryConnection, MemoryPlace, TestLoop
from tests.kit.mutations import TO_SERVER, mutated
from tests.kit.peers import response

P = PacketType

_SUBMITS = frozenset(type_ for type_ in P if type_.name.startswith("SUBMIT_"))
_FOREGROUND = frozenset({P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH, P.SUBMIT_JOB_LOW, P.SUBMIT_REDUCE_JOB})
_GRABS = frozenset({P.GRAB_JOB, P.GRAB_JOB_UNIQ, P.GRAB_JOB_ALL})


class RightAnswers:
    """What a good server answers, which does jobs itself and has some for workers.

    Args:
        name: goes into handles and workloads.

    Attributes:
        jobs: how many it has for workers.
        given: workloads that workers were given, by handle, and not returned yet.
        done: how many results of workers were right.
        wrong: what workers sent that no job was given for.
    """

    def __init__(self, name: bytes) -> None:
        self._name = name
        self._count = 0
        self.jobs = 0
        self.given: dict[bytes, bytes] = {}
        self.done = 0
        self.wrong: list[Packet] = []

    def answer(self, packet: Packet) -> list[bytes]:
        """Return what answers a request, in packets."""
        type_, args = packet
        if type_ in _SUBMITS:
            handle = self._new_handle()
            packets = [response(P.JOB_CREATED, handle)]
            if type_ in _FOREGROUND:
                packets += [
                    response(P.WORK_STATUS, handle, b"1", b"2"),
                    response(P.WORK_COMPLETE, handle, args[-1][::-1]),
                ]
            return packets
        if type_ in _GRABS:
            if not self.jobs:
                return [response(P.NO_JOB)]
            self.jobs -= 1
            handle = self._new_handle()
            self.given[handle] = b"work " + handle
            return [response(P.JOB_ASSIGN_UNIQ, handle, b"reverse", b"", self.given[handle])]
        if type_ == P.PRE_SLEEP:
            return [response(P.NOOP)] if self.jobs else []
        if type_ == P.WORK_COMPLETE:
            if self.given.pop(args[0], b"")[::-1] == args[1]:
                self.done += 1
            else:
                self.wrong.append(packet)
        if type_ == P.ECHO_REQ:
            return [response(P.ECHO_RES, args[0])]
        if type_ == P.OPTION_REQ:
            return [response(P.OPTION_RES, args[0])]
        if type_ == P.GET_STATUS:
            return [response(P.STATUS_RES, args[0], b"1", b"1", b"1", b"2")]
        if type_ == P.GET_STATUS_UNIQUE:
            return [response(P.STATUS_RES_UNIQUE, args[0], b"1", b"1", b"1", b"2", b"1")]
        return []

    def _new_handle(self) -> bytes:
        self._count += 1
        return b"H:%b:%d" % (self._name, self._count)


def serve(place: MemoryPlace, answers: RightAnswers) -> int:
    """Accept what waits and answer all requests, as long as there are any; returns how many."""
    count = 0
    for _ in range(100):
        while place.attempts:
            place.accept()
        live = [each for each in place.connections if not _has_ended(each)]
        requests = [(each, packet) for each in live for packet in Decoder(REQ).feed(each.take())]
        for connection, packet in requests:
            count += 1
            data = b"".join(answers.answer(packet))
            if data and not _has_ended(connection):
                connection.send(data)
        if not requests:
            break
    return count


class Malice:
    """A server that mutates its answers, sends what nobody asked for, and ends connections as it likes.

    Args:
        place: where it is.
        chance: decides everything.
    """

    def __init__(self, place: MemoryPlace, chance: random.Random) -> None:
        self._place = place
        self._chance = chance
        self._answers = RightAnswers(b"bad")

    def step(self) -> None:
        """Do something bad, or good for once."""
        chance = self._chance
        self._answers.jobs = chance.choice((0, 1, 5))
        if self._place.attempts:
            if chance.random() < 0.1:
                self._place.refuse()
            else:
                self._place.accept()
        for connection in list(self._place.connections):
            if _has_ended(connection):
                close(connection)
                continue
            what = chance.random()
            if what < 0.03:
                connection.lose("it was lost on purpose")
            elif what < 0.85:
                packets = [data for packet in _requests(connection) for data in self._answers.answer(packet)]
                self._send(connection, packets)

    def _send(self, connection: MemoryConnection, packets: list[bytes]) -> None:
        how = self._chance.random()
        if how < 0.6:
            pieces = packets
        elif how < 0.95 and packets:
            pieces = mutated(self._chance, [packets])
        else:
            pieces = mutated(self._chance, [*([packets] * 5 if packets else []), *TO_SERVER])
        for piece in pieces:
            if _has_ended(connection):
                break
            connection.send(piece)


def close(connection: MemoryConnection) -> None:
    """Let the other end know that its connection is closed, as it asked for."""
    if connection.is_closing and not (connection.is_lost or connection.is_aborted):
        connection.lose()


def wake(place: MemoryPlace) -> None:
    """Wake the workers of a server: it has jobs."""
    for connection in place.connections:
        if not _has_ended(connection):
            connection.send(response(P.NOOP))


def _has_ended(connection: MemoryConnection) -> bool:
    return connection.is_lost or connection.is_closing or connection.is_aborted


def _requests(connection: MemoryConnection) -> Iterator[Packet]:
    yield from Decoder(REQ).feed(connection.take())


@contextmanager
def nothing_unhandled(loop: TestLoop) -> Iterator[None]:
    """Check that nothing is logged meanwhile that nobody handles, and that no task is left in the end."""
    unhandled: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: unhandled.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        with capturedLogs() as logged:
            yield
            loop.settle()
            gc.collect()
            loop.settle()
    finally:
        logger.removeHandler(handler)
    unhandled += [
        str(formatEvent(event)) for event in logged if "log_failure" in event or event.get("isError")
    ]
    assert unhandled == []
    if isinstance(loop, AsyncioTestLoop):
        assert asyncio.all_tasks(loop.loop) == set()


def play_ten(play: Callable[[int], None]) -> None:
    """Play with ten servers, each with a seed of its own."""
    first = secrets.randbits(32)
    for seed in range(first, first + 10):
        play(seed)


def play_for_long(play: Callable[[int], None], capsys: pytest.CaptureFixture[str]) -> None:
    """Play with server after server, for MUTATION_SECONDS; the first has the seed MUTATION_SEED."""
    first = seed = int(os.environ.get("MUTATION_SEED") or secrets.randbits(32))
    end = time.monotonic() + float(os.environ.get("MUTATION_SECONDS") or 10)
    while time.monotonic() < end or seed == first:
        play(seed)
        seed += 1
    with capsys.disabled():
        print(f"\n    MUTATION_SEED={first}: {seed - first} servers", end="")  # noqa: T201
