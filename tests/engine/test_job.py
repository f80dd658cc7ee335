"""The transition table of jobs."""

from __future__ import annotations

import itertools

import pytest

from gearman_twisted.engine.records import FunctionQueue, Job
from gearman_twisted.engine.states import TRANSITIONS, State
from gearman_twisted.wire.constants import Priority

ALL_PAIRS = list(itertools.product(State, State))
FORBIDDEN = [pair for pair in ALL_PAIRS if pair not in TRANSITIONS]


def job_in(state: State) -> Job:
    """A job that is in a state."""
    return Job(
        1, b"H:farm:1", FunctionQueue(b"f"), b"", b"", Priority.NORMAL, is_background=True, state=state
    )


@pytest.mark.parametrize(("before", "after"), TRANSITIONS)
def test_step_of_the_table_is_taken(before: State, after: State) -> None:
    """A job takes every step that the table has."""
    job = job_in(before)
    job.enter(after)
    assert job.state is after


@pytest.mark.parametrize(("before", "after"), FORBIDDEN)
def test_any_other_step_is_a_bug(before: State, after: State) -> None:
    """A step that the table does not have raises, names both states, and changes nothing."""
    job = job_in(before)
    with pytest.raises(RuntimeError, match=f"'H:farm:1' cannot go from {before.name} to {after.name}"):
        job.enter(after)
    assert job.state is before


def test_done_is_the_end() -> None:
    """No step leads out of DONE, and a way leads to it from everywhere else."""
    assert not any(before is State.DONE for before, _ in TRANSITIONS)
    can_end = {State.DONE}
    for _ in State:
        can_end |= {before for before, after in TRANSITIONS if after in can_end}
    assert can_end == set(State)


def test_job_is_stored_with_all_that_it_needs() -> None:
    """What goes to the store is what the job was submitted with."""
    job = Job(7, b"H:farm:7", FunctionQueue(b"f"), b"u", b"\0w", Priority.LOW, True, run_at=5, reducer=b"r")
    assert job.stored() == (7, b"H:farm:7", b"f", b"u", b"\0w", 2, 5, b"r", b"")
