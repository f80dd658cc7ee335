"""Servers that break every rule: each call ends, and those of a good server beside them end well."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from twisted.internet.defer import CancelledError

from gearman_twisted.errors import GearmanError
from tests.kit.client_rig import Calls, MemoryServer
from tests.kit.loops import MemoryPlace, Outcome, TestLoop
from tests.kit.malicious import Malice, RightAnswers, close, nothing_unhandled, play_for_long, play_ten, serve
from tests.kit.mutations import OPERATORS, mutated

# How long a caller waits.
TIMEOUT = 60.0


def begin(calls: Calls, chance: random.Random, number: int) -> tuple[bytes, Outcome]:
    """Make a call; returns its result of a good server, empty where it is no bytes."""
    data = b"call %d" % number
    unique = chance.choice((b"", b"", b"u%d" % chance.randrange(5)))
    took: list[Any] = []
    match chance.randrange(8):
        case 0:
            return b"", calls.submit_background("reverse", data)
        case 1:
            return data, calls.echo(data)
        case 2:
            return b"", calls.status_by_unique(b"unique")
        case 3:
            return b"", calls.ping()
        case 4:
            return b"", calls.status(b"H:bad:1")
        case 5:
            return data[::-1], calls.submit("reverse", data, unique=unique, retry=True)
    callbacks = {"on_created": took.append, "on_data": took.append, "on_warning": took.append}
    return data[::-1], calls.submit("reverse", data, unique=unique, **callbacks)


def play(loop: TestLoop, seed: int) -> None:
    """A client's life with a server that means no good; then one of a pool of it and a good one."""
    chance = random.Random(seed)
    bad, good = MemoryServer(loop, "bad:1"), MemoryServer(loop, "good:1")
    malice, right = Malice(bad, chance), RightAnswers(b"good")
    face = loop.face("client")
    options = {"retry_policy": lambda _attempt: 3.0, "ping_interval": 9.0, **loop.options}
    alone = face.GearmanClient(bad, **options)
    pool = face.ServerPool([bad_twin := MemoryServer(loop, "bad:2"), good], choice="round_robin", **options)
    healthy = face.GearmanClient(good_twin := MemoryServer(loop, "good:2"), **options)
    twin, twin_right = Malice(bad_twin, chance), RightAnswers(b"good")
    outcomes: list[tuple[float, Outcome]] = []
    now = 0.0
    for number in range(chance.choice((10, 80))):
        _, outcome = begin(Calls(loop, alone), chance, number)
        outcomes.append((now, outcome))
        _, outcome = begin(Calls(loop, pool), chance, number)
        outcomes.append((now, outcome))
        expected, of_healthy = begin(Calls(loop, healthy), chance, number)
        serve(good_twin, twin_right)
        assert of_healthy.error is None
        assert not expected or of_healthy.get() == expected
        for _ in range(chance.choice((1, 5))):
            malice.step()
            twin.step()
            serve(good, right)
        passes = chance.choice((0.0, 0.0, 0.0, 0.5, 5.0, 40.0))
        loop.advance(passes)
        now += passes
        serve(good_twin, twin_right)
        for started, outcome in outcomes:
            if not outcome.is_settled and now >= started + TIMEOUT:
                outcome.cancel()
    for _, outcome in outcomes:
        if not outcome.is_settled:
            outcome.cancel()
    closing = [Calls(loop, client).close() for client in (alone, pool, healthy)]
    for server in (bad, good, bad_twin, good_twin):
        for connection in server.connections:
            close(connection)
    loop.settle()
    assert all(each.is_settled and each.error is None for each in closing)
    for _, outcome in outcomes:
        assert outcome.is_settled
        cancelled = (CancelledError, asyncio.CancelledError)
        assert outcome.error is None or isinstance(outcome.error, (GearmanError, *cancelled))
    assert loop.timers() == 0


REPLIES = {
    "status": [b"reverse\t3\t1\t2\n", b"f\t0\t0\t0\n", b".\n"],
    "priority_status": [b"reverse\t3\t1\t2\t0\n", b".\n"],
    "show_jobs": [b"H:bad:1\t0\t0\t1\n", b".\n"],
    "workers": [b"31 127.0.0.1 - : reverse f\n", b"32 ::1 name :\n", b".\n"],
    "version": [b"OK 1.1.20\n"],
    "getpid": [b"OK 4711\n"],
}


def play_admin(loop: TestLoop, seed: int) -> None:
    """The life of an admin client with a server that means no good."""
    chance = random.Random(seed)
    server = MemoryPlace(loop, "bad:1")
    client = loop.face("client.admin").AdminClient(server, **loop.options)
    outcomes: list[Outcome] = []
    for _ in range(chance.choice((10, 80))):
        name = chance.choice(list(REPLIES))
        outcomes.append(getattr(Calls(loop, client), name)())
        if server.attempts:
            (server.refuse if chance.random() < 0.1 else server.accept)()
        for connection in server.connections:
            if connection.is_closing or connection.is_aborted or connection.is_lost:
                close(connection)
            elif chance.random() < 0.05:
                connection.lose()
            elif connection.take() and chance.random() < 0.9:
                pieces = REPLIES[name]
                if chance.random() < 0.4:
                    pieces = mutated(chance, [pieces] * 3 + list(OPERATORS))
                for piece in pieces:
                    if not connection.is_aborted:
                        connection.send(piece)
        loop.advance(chance.choice((0.0, 1.0)))
    closing = Calls(loop, client).close()
    loop.advance(10)
    assert closing.end() is None
    for outcome in outcomes:
        assert outcome.is_settled
        assert outcome.error is None or isinstance(outcome.error, GearmanError)


def play_and_look(loop: TestLoop, seed: int) -> None:
    """All of it, with a look at what nobody handled."""
    print(f"MUTATION_SEED={seed}")  # noqa: T201
    with nothing_unhandled(loop):
        play(loop, seed)
        play_admin(loop, seed)


def test_malicious_servers(loop: TestLoop) -> None:
    """All calls end in time, with a result or an error of ours; the good server's end well."""
    play_ten(lambda seed: play_and_look(loop, seed))


@pytest.mark.soak
def test_malicious_servers_for_long(loop: TestLoop, capsys: pytest.CaptureFixture[str]) -> None:
    """Many of them.

    The variable MUTATION_SEED is the seed of the first server, MUTATION_SECONDS says how long it takes.
    """
    play_for_long(lambda seed: play_and_look(loop, seed), capsys)
