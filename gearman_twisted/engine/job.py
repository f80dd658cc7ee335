"""A job and the states that it goes through."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import attrs

from gearman_twisted.engine.outbox import StoredJob
from gearman_twisted.wire.schedule import Schedule

if TYPE_CHECKING:
    from gearman_twisted.engine.connections import Connection
    from gearman_twisted.engine.queues import FunctionQueue
    from gearman_twisted.engine.reduce import Reduction


class State(enum.IntEnum):
    """Where a job is."""

    SAVING = 1
    SCHEDULED = 2
    QUEUED = 3
    RUNNING = 4
    CANCELLED = 5
    DONE = 6
    RECURRING = 7
    REDUCING = 8


TRANSITIONS: dict[tuple[State, State], str] = {
    (State.SAVING, State.QUEUED): "the store has it",
    (State.SAVING, State.SCHEDULED): "the store has it, its time is to come",
    (State.SAVING, State.RECURRING): "the store has it; each time it is due, a job is made of it",
    (State.SAVING, State.DONE): "the store failed, or it was cancelled",
    (State.SCHEDULED, State.QUEUED): "its time has come",
    (State.SCHEDULED, State.DONE): "cancelled",
    (State.RECURRING, State.DONE): "cancelled",
    (State.QUEUED, State.RUNNING): "a worker grabbed it",
    (State.QUEUED, State.DONE): "cancelled, or nobody waits for it any more",
    (State.RUNNING, State.QUEUED): "taken from its worker: lost, timed out, or function given up",
    (State.RUNNING, State.DONE): "its worker ended it, or it was taken away too often",
    (State.RUNNING, State.CANCELLED): "cancelled; its worker still runs it, for nobody",
    (State.RUNNING, State.REDUCING): "its worker has split it; its parts are not done",
    (State.REDUCING, State.DONE): "its parts are done, one failed, or it was cancelled",
    (State.CANCELLED, State.DONE): "its worker ended it or was lost",
}
"""Every step that a job may take, with its reason.

A job starts in SAVING, SCHEDULED, QUEUED or RECURRING.
"""

NO_PROGRESS = (b"0", b"0")


@attrs.define(eq=False, weakref_slot=False)
class Job:
    """A job that has not ended. There may be millions: each attribute that is not here is memory saved.

    Attributes:
        id: see ``StoredJob``; so are handle, unique, workload, priority, run_at and reducer.
        function: the queue of its function.
        state: where it is; only ``enter`` changes it.
        is_background: it runs even when no client waits for it.
        is_stored: the store has it, so it has to be forgotten there when it ends.
        is_away: its workload and its reducer are in the store alone; it has none here.
        worker: who runs it, in RUNNING and CANCELLED.
        clients: who gets its packets, with how often: once for each time that it submitted it.
        progress: numerator and denominator of the last WORK_STATUS, decimal text.
        attempts: how often it was taken from a worker.
        due: when time does something to it, in seconds since 1970, 0 for never: in SCHEDULED it is
            queued then, in RECURRING a job is made of it, with a worker it is taken away.
        reduction: of a reduce job and of its parts, see ``reduce``.
        schedule: of a recurring job, when jobs are made of it.
        replaces: the recurring job whose place this one takes once the store has it.
    """

    id: int
    handle: bytes
    function: FunctionQueue
    unique: bytes
    workload: bytes
    priority: int
    is_background: bool
    run_at: int = 0
    reducer: bytes = b""
    state: State = State.QUEUED
    is_stored: bool = False
    is_away: bool = False
    worker: Connection | None = None
    # None while there is nothing: a million queued jobs need no collection each.
    clients: dict[Connection, int] | None = None
    progress: tuple[bytes, bytes] = NO_PROGRESS
    attempts: int = 0
    due: float = 0.0
    schedule: Schedule | None = None
    reduction: Reduction | None = None
    replaces: Job | None = None

    def enter(self, state: State) -> None:
        """Takes a step of the table; one that is not there is a bug."""
        if (self.state, state) not in TRANSITIONS:
            raise RuntimeError(f"job {self.handle!r} cannot go from {self.state.name} to {state.name}")
        self.state = state

    def stored(self) -> StoredJob:
        """What the store keeps of it."""
        return StoredJob(
            self.id,
            self.handle,
            self.function.name,
            self.unique,
            self.workload,
            self.priority,
            self.run_at,
            self.reducer,
            self.schedule.text if self.schedule is not None else b"",
        )
