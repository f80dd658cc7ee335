"""The simulation finds what it is there to find: a server with a fault does not pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from gearman_twisted.engine.connections import Connection, Gap
from gearman_twisted.engine.job import Job, State
from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.lifecycle import Lifecycle
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.engine.queues import Lane, Queues
from gearman_twisted.engine.wakeups import Wakeups
from gearman_twisted.store.batch import GroupCommit
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import PacketType
from tests.simulation.__main__ import main
from tests.simulation.run import SimulationFailed, simulate

STEPS = 60_000

Patch = Callable[[type, str, Any], None]
Fault = Callable[[Patch], None]
FAULTS: dict[str, tuple[Fault, str]] = {}


def fault(message: str) -> Callable[[Fault], Fault]:
    """Registers a fault what the simulation has to say of it, a regular expression."""

    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (function, message)
        return function

    return register


@fault("was acknowledged before it was stored")
def does_not_save(patch: Patch) -> None:
    original = Lifecycle._submit

    def submit(self: Any, *args: Any, **options: Any) -> None:
        durable, self._durable = self._durable, False
        original(self, *args, **options)
        self._durable = durable

    patch(Lifecycle, "_submit", submit)


@fault("was never sent")
def forgets_to_answer_a_save(patch: Patch) -> None:
    patch(Lifecycle, "_fill_gaps", lambda *_: None)


@fault("was acknowledged before it was stored")
def takes_a_failed_save_for_a_good_one(patch: Patch) -> None:
    patch(Lifecycle, "save_failed", lambda self, ids, _reason, now: self.saved(ids, now))


@fault("was given out (before it was stored|out of turn)")
def gives_out_what_is_not_saved(patch: Patch) -> None:
    original = Lifecycle._save

    def save(self: Any, job: Job) -> None:
        original(self, job)
        if job.state is State.SAVING:
            self._admit(job)

    patch(Lifecycle, "_save", save)


@fault("the server has it no more")
def loses_stored_jobs_at_the_start(patch: Patch) -> None:
    original = Lifecycle.restore

    def restore(self: Any, stored: Any, now: float) -> None:
        if stored.id % 5:
            original(self, stored, now)

    patch(Lifecycle, "restore", restore)


@fault("has not ended")
def forgets_too_early(patch: Patch) -> None:
    original = Lifecycle._assign

    def assign(self: Any, conn: Connection, job: Job) -> None:
        original(self, conn, job)
        if job.is_stored:
            job.is_stored = False
            self._out.forgets.append(job.id)

    patch(Lifecycle, "_assign", assign)


@fault("is saved after it was forgotten")
def lets_a_forget_overtake_its_save(patch: Patch) -> None:
    original = GroupCommit._take

    def take(self: Any) -> Any:
        self._ids_to_save.clear()
        return original(self)

    patch(GroupCommit, "_take", take)


@fault("the store still has")
def never_forgets(patch: Patch) -> None:
    original = Lifecycle._take_outbox

    def take_outbox(self: Any) -> Outbox:
        out = original(self)
        out.forgets.clear()
        return out

    patch(Lifecycle, "_take_outbox", take_outbox)


@fault("is with connection")
def gives_a_job_to_two_workers(patch: Patch) -> None:
    original = JobServer._grab

    def grab(self: Any, assign: PacketType, conn: Connection, args: list[bytes]) -> None:
        for job in self._jobs.values():
            if assign == PacketType.JOB_ASSIGN and job.worker and job.function in conn.abilities:
                conn.write(self._out, respond(assign, job.handle, job.function.name, job.workload))
                return
        original(self, assign, conn, args)

    patch(JobServer, "_grab", grab)


@fault("out of turn")
def serves_the_last_one_first(patch: Patch) -> None:
    def push(self: Any, job: Job) -> None:
        self._entries.appendleft(job)
        self.live += 1

    patch(Lane, "push", push)


@fault("was told NO_JOB")
def denies_that_there_are_jobs(patch: Patch) -> None:
    original = Queues.pop
    calls = iter(range(10**9))
    patch(Queues, "pop", lambda *args: None if next(calls) % 10 == 9 else original(*args))


@fault("was due|was answered with")
def answers_out_of_order(patch: Patch) -> None:
    patch(Connection, "leave_gap", lambda _self: Gap())
    patch(Connection, "fill_gap", lambda self, out, _gap, reply: self.is_open and self.write(out, reply))


@fault("for which it does not wait")
def tells_an_ending_twice(patch: Patch) -> None:
    original = JobServer._forward

    def forward(self: Any, *args: Any) -> None:
        original(self, *args)
        original(self, *args)

    patch(JobServer, "_forward", forward)


@fault("was never told the end of")
def tells_no_ending(patch: Patch) -> None:
    patch(JobServer, "_forward", lambda *_: None)


@fault("and the job ended with")
def tells_another_ending(patch: Patch) -> None:
    original = JobServer._forward

    def forward(self: Any, job: Job, type_: PacketType, args: list[bytes]) -> None:
        original(self, job, type_, [args[0], b"wrong"] if len(args) == 2 else args)

    patch(JobServer, "_forward", forward)


@fault("none that was woken")
def wakes_nobody(patch: Patch) -> None:
    patch(Lifecycle, "_wake", lambda *_: None)


@fault("none that was woken")
def waits_for_the_woken_for_ever(patch: Patch) -> None:
    original = Wakeups.pass_over

    def pass_over(self: Any, now: float) -> list[Any]:
        original(self, now)
        return []

    patch(Wakeups, "pass_over", pass_over)


@fault("the server still has")
def keeps_something(patch: Patch) -> None:
    original = Lifecycle._finish

    def finish(self: Any, job: Job) -> None:
        original(self, job)
        job.function.total += 1

    patch(Lifecycle, "_finish", finish)


@fault("KeyError: 'a bug'")
def raises(patch: Patch) -> None:
    calls = iter(range(10**9))
    original = Lifecycle._take_outbox

    def take_outbox(self: Any) -> Outbox:
        if next(calls) == 1000:
            raise KeyError("a bug")
        return original(self)

    patch(Lifecycle, "_take_outbox", take_outbox)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with this fault breaks the rule that it is about."""
    break_it, message = FAULTS[name]
    break_it(monkeypatch.setattr)
    with pytest.raises(SimulationFailed) as failed:
        simulate(1, STEPS)
    assert re.search(message, str(failed.value).splitlines()[-2])


def test_violation_can_be_repeated(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with status 1 and says how to see the same again, from the world it was in."""
    serves_the_last_one_first(monkeypatch.setattr)
    assert main(["--seed", "3", "--steps", str(STEPS)]) == 1
    *_, found, again = capsys.readouterr().out.splitlines()
    assert again.startswith("Again: python -m tests.simulation --seed 3 --world ")
    assert main(again.split()[4:]) == 1
    assert capsys.readouterr().out.splitlines()[-2] == found
