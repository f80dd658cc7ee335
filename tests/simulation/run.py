"""Worlds, one after the other, until the steps are used up; all from one seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import attrs

from gearman_twisted.engine import lane, queues
from gearman_twisted.store import batch
from tests.simulation.world import World

_SHORTEST = 1000
_LONGEST = 6000
_SHOWN_BYTES = 300


class SimulationFailed(Exception):
    """Something that must always be true was not; the message says what, when, and how to see it again."""


@attrs.frozen
class Result:
    """What was simulated.

    Attributes:
        steps: how many events there were.
        worlds: in how many worlds.
        jobs: how many submissions were made in them.
    """

    steps: int
    worlds: int
    jobs: int


def simulate(
    seed: int, steps: int, *, first_world: int = 0, progress: Callable[[int], None] | None = None
) -> Result:
    """Simulate until so many steps are done, and drain the last world.

    Args:
        seed: all that happens follows from it and from ``steps``.
        steps: how many events there are at least.
        first_world: the number of the world to begin with; worlds do not depend on each other.
        progress: called now and then with the number of steps done.

    Raises:
        SimulationFailed: a rule was broken, or the server raised an exception.
    """
    done = worlds = jobs = 0
    while done < steps:
        number = first_world + worlds
        random = Random(seed * 1_000_003 + number)
        length = min(steps - done, _SHORTEST + int(random.random() * (_LONGEST - _SHORTEST)))
        world = World(int(random.random() * 2**53))
        commit_size, batch.MAX_SAVES = batch.MAX_SAVES, world.conditions.commit_size
        read_ahead, lane.READ_AHEAD_JOBS = lane.READ_AHEAD_JOBS, world.conditions.read_ahead
        # In every second world, workers of more than one function are served by the heap of ``turns``.
        few_abilities, queues.FEW_ABILITIES = queues.FEW_ABILITIES, (queues.FEW_ABILITIES, 1)[number % 2]
        try:
            while world.steps < length:
                world.step()
                if progress is not None and world.steps % 1000 == 0:
                    progress(done + world.steps)
            world.drain()
        except Exception as error:
            raise SimulationFailed("\n".join(_story(error, world, seed, number, length))) from error
        finally:
            batch.MAX_SAVES = commit_size
            lane.READ_AHEAD_JOBS = read_ahead
            queues.FEW_ABILITIES = few_abilities
        done += world.steps
        worlds += 1
        jobs += world.submissions
    return Result(done, worlds, jobs)


def _story(error: Exception, world: World, seed: int, number: int, length: int) -> Iterator[str]:
    yield f"{world.conditions}"
    yield "The last events (step, time, event):"
    for step, now, event, detail in world.story:
        text = f"{detail}"
        yield f"{step:6} {now:.6f} {event} {text if len(text) <= _SHOWN_BYTES else text[:_SHOWN_BYTES] + '…'}"
    violation = world.checker.violation or f"{type(error).__name__}: {error}"
    yield f"Seed {seed}, world {number}, step {world.steps}: {violation}"
    yield f"Again: python -m tests.simulation --seed {seed} --world {number} --steps {length}"
