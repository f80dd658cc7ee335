"""The states of a job, and the transitions between them."""

from __future__ import annotations

import enum


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
    (
        State.QUEUED,
        State.DONE,
    ): "cancelled, unwanted, or ended after all by the worker that exceeded its time limit",
    (State.RUNNING, State.QUEUED): "taken from its worker: lost, timed out, or function given up",
    (State.RUNNING, State.DONE): "its worker ended it, or it was taken away too often",
    (State.RUNNING, State.CANCELLED): "cancelled; its worker still runs it, the result is discarded",
    (State.RUNNING, State.REDUCING): "its worker has split it; its parts are not done",
    (State.REDUCING, State.DONE): "its parts are done, one failed, or it was cancelled",
    (State.CANCELLED, State.DONE): "its worker ended it or was lost",
}
"""Every transition that a job may take, with its reason.

A job starts in SAVING, SCHEDULED, QUEUED or RECURRING.
"""
