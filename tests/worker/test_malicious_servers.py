"""Servers that break every rule: a worker does the jobs of a good server beside them, and ends well."""

from __future__ import annotations

import random

import pytest

from gearman_twisted.worker.job import Job
from tests.kit.loops import TestLoop
from tests.kit.malicious import Malice, RightAnswers, nothing_unhandled, play_for_long, play_ten, serve, wake
from tests.kit.worker_rig import Rig

# In so many seconds a good server's next job is done, whatever the other one does: a slot that waits for a
# silent server is lent after one, a lost connection is made again after five.
MAX_WAIT = 15.0


def reverse(job: Job) -> bytes:
    """What the worker does."""
    return job.workload[::-1]


def play(loop: TestLoop, seed: int) -> None:
    """A worker's life with a good server and a bad one."""
    chance = random.Random(seed)
    rig = Rig(loop, "bad:1", "good:1", concurrency=chance.choice((1, 3)), ping_interval=9.0)
    for name in ("reverse", "mutated f", "mutated g"):
        rig.register(name, reverse)
    bad, good = rig.places
    malice = Malice(bad, chance)
    right = RightAnswers(b"good")
    rig.start()
    done_at = now = 0.0
    for _ in range(chance.choice((20, 150))):
        for _ in range(chance.choice((1, 1, 20))):
            malice.step()
        before = right.done
        # A server with a job for every grab would be asked for ever in one moment.
        right.jobs = 5
        wake(good)
        serve(good, right)
        if right.done > before:
            done_at = now
        assert now - done_at <= MAX_WAIT
        assert right.wrong == []
        passes = chance.choice((0.0, 0.0, 0.1, 0.5, 2.0, 5.0))
        loop.advance(passes)
        now += passes
    rig.stop()
    right.jobs = 0
    serve(good, right)
    rig.close()
    for place in rig.places:
        for connection in place.connections:
            if not connection.is_lost:
                connection.lose()
    loop.advance(30)
    assert right.wrong == []
    assert rig.core.slots.free == rig.core.slots.count
    assert loop.timers() == 0


def play_and_look(loop: TestLoop, seed: int) -> None:
    """The same, with a look at what nobody handled."""
    print(f"MUTATION_SEED={seed}")  # noqa: T201
    with nothing_unhandled(loop):
        play(loop, seed)


def test_malicious_servers(loop: TestLoop) -> None:
    """The good server's jobs are done in time, each once; nothing is left when the worker has stopped."""
    play_ten(lambda seed: play_and_look(loop, seed))


@pytest.mark.soak
def test_malicious_servers_for_long(loop: TestLoop, capsys: pytest.CaptureFixture[str]) -> None:
    """Many of them.

    The variable MUTATION_SEED is the seed of the first server, MUTATION_SECONDS says how long it takes.
    """
    play_for_long(lambda seed: play_and_look(loop, seed), capsys)
