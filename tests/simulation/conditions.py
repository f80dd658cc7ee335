"""What is different from one simulated world to the other."""

from __future__ import annotations

from random import Random

import attrs

from gearman_twisted.engine import lane
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.store import batch

PREFIX = b"H:sim"
"""What handles start with."""


@attrs.frozen(kw_only=True)
class Conditions:
    """What is different from world to world.

    Attributes:
        durable: whether there is a store.
        functions, clients, workers, both: how many there are.
        pace: seconds that pass with a step, on average.
        slowness, failures: see ``SimulatedStore``.
        commit_size: how many jobs share a commit at most.
        crashes, leaving, naughtiness: how likely each is, at each step, turn, and turn of a worker.
        background, scheduled, reduced, uniques: the shares of submissions that are so.
        recurring: how likely a turn of a client is to submit a recurring job.
        timed: the share of abilities with a time limit.
        room: so many jobs, and the clients pause.
        max_queue: so many jobs of the first function, and it takes no more; 0 for no limit.
        late: whether the timer may come late.
        jumps: how likely the wall clock is set with a step.
        settings: the engine's.
        read_ahead: how many jobs a lane asks for at a time that are offloaded.
    """

    durable: bool
    functions: int
    clients: int
    workers: int
    both: int
    pace: float
    slowness: float
    failures: float
    commit_size: int
    crashes: float
    leaving: float
    naughtiness: float
    background: float
    scheduled: float
    reduced: float
    uniques: float
    recurring: float
    timed: float
    room: int
    max_queue: int
    late: bool
    jumps: float
    settings: EngineSettings
    read_ahead: int


def conditions_of(random: Random) -> Conditions:
    """The conditions of a world."""
    chance = random.random

    def one_of(*values: float) -> float:
        return values[int(chance() * len(values))]

    def number(low: int, high: int) -> int:
        return low + int(chance() * (high - low + 1))

    # Evaluated in the order in which they stand here, so that a seed means the same everywhere.
    return Conditions(
        durable=chance() < 0.8,
        functions=int(one_of(1, 2, 3, 6, 12)),
        clients=number(1, 10),
        workers=number(1, 16),
        both=int(one_of(0, 0, 2, 6)),
        pace=one_of(0.0002, 0.002, 0.02, 0.1, 0.5),
        slowness=one_of(0, 0.002, 0.02, 0.5),
        failures=one_of(0, 0.02, 0.1, 0.5),
        commit_size=int(one_of(2, 20, batch.MAX_SAVES)),
        crashes=one_of(0, 0.0005, 0.003, 0.01),
        leaving=one_of(0, 0.002, 0.02),
        naughtiness=one_of(0, 0.01, 0.1),
        background=one_of(0.1, 0.5, 0.9),
        scheduled=one_of(0, 0.05, 0.3),
        reduced=one_of(0, 0.1, 0.5),
        uniques=one_of(0, 0.1, 0.6, 0.9),
        recurring=one_of(0, 0.01, 0.03),
        timed=one_of(0, 0.3),
        room=int(one_of(5, 40, 300)),
        max_queue=int(one_of(0, 0, 3, 20)),
        late=chance() < 0.3,
        jumps=one_of(0, 0, 0.001, 0.01),
        settings=EngineSettings(
            handle_prefix=PREFIX,
            job_retries=int(one_of(-1, -1, 0, 1, 3)),
            wakeup_timeout=one_of(0.01, 0.1, 1.0),
            order="2.0" if chance() < 0.8 else "1.1",
            max_held_bytes=int(one_of(1 << 26, 1 << 26, 2000)),
            max_reduced_bytes=int(one_of(1 << 26, 1 << 26, 20)),
            memory=None if chance() < 0.6 else int(one_of(0, 30, 300)),
        ),
        read_ahead=int(one_of(1, 5, lane.READ_AHEAD_JOBS)),
    )
