"""The simulation finds what it is there to find: a server with a fault does not pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from gearman_twisted.engine.connections import Connection, Gap
from gearman_twisted.engine.job import Job, State
from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.lane import Lane
from gearman_twisted.engine.lifecycle import Lifecycle
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.engine.overflow import Overflowing
from gearman_twisted.engine.queues import Queues
from gearman_twisted.engine.reduce import Reducing, Reduction
from gearman_twisted.engine.wakeups import Wakeups
from gearman_twisted.store.batch import GroupCommit
from gearman_twisted.wire.codec import respond
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.schedule import Schedule
from tests.simulation.__main__ import main
from tests.simulation.run import SimulationFailed, simulate

STEPS = 300_000

Patch = Callable[[type, str, Any], None]
Fault = Callable[[Patch], None]
FAULTS: dict[str, tuple[Fault, str, int]] = {}


def fault(message: str, seed: int = 1) -> Callable[[Fault], Fault]:
    """Registers a fault, with what the simulation has to say of it, a regular expression.

    Args:
        message: the expression.
        seed: where it is found soon; only what takes a lot to show itself needs another one.
    """

    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (function, message, seed)
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


@fault("was acknowledged before it was stored", seed=3)
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
            self._out.forget(job.id)

    patch(Lifecycle, "_assign", assign)


@fault("is saved after it was forgotten")
def lets_a_forget_overtake_its_save(patch: Patch) -> None:
    original = GroupCommit._take

    def take(self: Any) -> Any:
        forgets, self._forgets = self._forgets, []
        return original(self)[0], forgets

    patch(GroupCommit, "_take", take)


@fault("the store still has")
def never_forgets(patch: Patch) -> None:
    original = JobServer._take_outbox

    def take_outbox(self: Any) -> Outbox:
        out = original(self)
        out.forgets = []
        return out

    patch(JobServer, "_take_outbox", take_outbox)


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
        self._front.appendleft(job)
        self.live += 1

    patch(Lane, "push", push)


@fault("was told NO_JOB")
def denies_that_there_are_jobs(patch: Patch) -> None:
    original = Queues.pop
    calls = iter(range(10**9))
    patch(Queues, "pop", lambda *args: None if next(calls) % 10 == 9 else original(*args))


@fault("out of turn")
def reads_jobs_back_out_of_order(patch: Patch) -> None:
    original = Lane.deliver
    patch(Lane, "deliver", lambda self, jobs, asked: original(self, jobs[::-1], asked))


@fault("workers that sleep")
def wakes_nobody_for_what_was_read_back(patch: Patch) -> None:
    patch(Overflowing, "_look_again", lambda *_: None)


@fault("was acknowledged, and the server has it no more|the server still has")
def loses_what_it_cannot_find_in_time(patch: Patch) -> None:
    original = Overflowing.loaded
    patch(Overflowing, "loaded", lambda self, number, jobs, now: original(self, number, list(jobs)[1:], now))


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


@fault("and the job ended with")
def joins_results_as_they_come(patch: Patch) -> None:
    original = Reducing._take_from_part

    def take_from_part(self: Any, reduction: Reduction, part: Job, *args: Any) -> None:
        places = reduction.open
        reduction.open = dict(zip(places, reversed(places.values()), strict=True))
        original(self, reduction, part, *args)

    patch(Reducing, "_take_from_part", take_from_part)


@fault("and the job ended with")
def keeps_what_a_lost_worker_sent_of_a_part(patch: Patch) -> None:
    original = Reducing._take_away

    def take_away(self: Any, job: Job) -> None:
        if job.reduction is None or job is job.reduction.whole:
            original(self, job)
        else:
            Lifecycle._take_away(self, job)

    patch(Reducing, "_take_away", take_away)


@fault("and the job ended with")
def waits_for_one_part_only(patch: Patch) -> None:
    original = Reducing._end_if_reduced

    def end_if_reduced(self: Any, reduction: Reduction) -> None:
        if any(reduction.results):
            self._forward(reduction.whole, PacketType.WORK_COMPLETE, [reduction.whole.handle, b""])
        original(self, reduction)

    patch(Reducing, "_end_if_reduced", end_if_reduced)


@fault("has ended and was given out again|is over, and the server still has it")
def does_not_mind_a_part_that_failed(patch: Patch) -> None:
    original = Reducing._release

    def release(self: Any, job: Job) -> None:
        reduction = job.reduction
        if reduction is not None and job is not reduction.whole:
            job.reduction = None
            del reduction.open[job]
        original(self, job)

    patch(Reducing, "_release", release)


@fault("is over, and the server still has it|has ended and was given out again")
def leaves_parts_behind(patch: Patch) -> None:
    def give_up_parts(_self: Any, whole: Job) -> None:
        reduction, whole.reduction = whole.reduction, None
        for part in list(reduction.open) if reduction is not None else ():
            part.reduction = None

    patch(Reducing, "_give_up_parts", give_up_parts)


@fault("and the server has it no more")
def loses_what_is_reduced(patch: Patch) -> None:
    original = JobServer.disconnect

    def disconnect(self: Any, conn: int, now: float) -> Outbox:
        for job in [job for job in self._jobs.values() if job.state is State.REDUCING]:
            job.is_stored = False
            self._finish(job)
        return original(self, conn, now)

    patch(JobServer, "disconnect", disconnect)


@fault("no job was made of b'.*, a part of")
def drops_the_last_part(patch: Patch) -> None:
    original = Reducing._reduce

    def reduce(self: Any, job: Job, type_: PacketType, args: list[bytes]) -> bool:
        is_last = type_ is PacketType.WORK_COMPLETE and job.reduction and job is job.reduction.whole
        return original(self, job, type_, [args[0], b""] if is_last else args)

    patch(Reducing, "_reduce", reduce)


@fault("which is a part")
def shows_parts_to_clients(patch: Patch) -> None:
    original = Reducing._add_part

    def add_part(self: Any, reduction: Reduction, workload: bytes) -> None:
        self._forward(reduction.whole, PacketType.WORK_DATA, [reduction.whole.handle, workload])
        original(self, reduction, workload)

    patch(Reducing, "_add_part", add_part)


@fault("is saved, and is a part of")
def saves_parts(patch: Patch) -> None:
    original = Reducing._add_part

    def add_part(self: Any, reduction: Reduction, workload: bytes) -> None:
        original(self, reduction, workload)
        if self._durable:
            self._save(next(reversed(reduction.open)))

    patch(Reducing, "_add_part", add_part)


@fault("which is not what was submitted")
def saves_no_reducer(patch: Patch) -> None:
    original = Job.stored
    patch(Job, "stored", lambda job: original(job)._replace(reducer=b""))


@fault("has not ended")
def forgets_what_is_split(patch: Patch) -> None:
    original = Reducing._end_if_reduced

    def end_if_reduced(self: Any, reduction: Reduction) -> None:
        whole = reduction.whole
        if reduction.open and whole.is_stored:
            whole.is_stored = False
            self._out.forget(whole.id)
        original(self, reduction)

    patch(Reducing, "_end_if_reduced", end_if_reduced)


@fault("does not name the reducer")
def keeps_the_reducer_to_itself(patch: Patch) -> None:
    original = JobServer._grab

    def grab(self: Any, assign: PacketType, conn: Connection, args: list[bytes]) -> None:
        is_all = assign is PacketType.JOB_ASSIGN_ALL
        original(self, PacketType.JOB_ASSIGN_UNIQ if is_all else assign, conn, args)

    patch(JobServer, "_grab", grab)


@fault("no recurring job is due|is over, and the server still has it")
def keeps_the_recurring_job_that_was_replaced(patch: Patch) -> None:
    original = Lifecycle._submit_recurring

    def submit_recurring(self: Any, conn: Connection, *asked: Any) -> None:
        name, unique, schedule, workload = asked
        known = self._queues.function(name).recurring.get(unique)
        if known is not None and (known.schedule.text, known.workload) != (schedule.text, workload):
            del known.function.recurring[unique]
        original(self, conn, *asked)

    patch(Lifecycle, "_submit_recurring", submit_recurring)


@fault("was answered with")
def keeps_the_old_schedule(patch: Patch) -> None:
    original = Lifecycle._submit_recurring

    def submit_recurring(self: Any, conn: Connection, *asked: Any) -> None:
        name, unique, *asked_of_it = asked
        known = self._queues.function(name).recurring.get(unique)
        if known is not None:
            asked_of_it = [known.schedule, known.workload]
        original(self, conn, name, unique, *asked_of_it)

    patch(Lifecycle, "_submit_recurring", submit_recurring)


@fault("is over, and the server still has it", seed=2)
def restores_what_was_replaced(patch: Patch) -> None:
    original = Lifecycle.restore

    def restore(self: Any, stored: Any, now: float) -> None:
        if stored.schedule:
            self._queues.function(stored.function).recurring.pop(stored.unique, None)
        original(self, stored, now)

    patch(Lifecycle, "restore", restore)


@fault("is due, and no job was made of it")
def makes_nothing_of_what_is_due(patch: Patch) -> None:
    patch(Lifecycle, "_make_job_of", lambda *_: None)


@fault("no recurring job is due")
def makes_jobs_too_early(patch: Patch) -> None:
    original = Schedule.next_after
    patch(Schedule, "next_after", lambda schedule, now: int(now + original(schedule, now)) // 2 + 1)


@fault("KeyError: 'a bug'")
def raises(patch: Patch) -> None:
    calls = iter(range(10**9))
    original = JobServer._take_outbox

    def take_outbox(self: Any) -> Outbox:
        if next(calls) == 1000:
            raise KeyError("a bug")
        return original(self)

    patch(JobServer, "_take_outbox", take_outbox)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with this fault breaks the rule that it is about."""
    break_it, message, seed = FAULTS[name]
    break_it(monkeypatch.setattr)
    with pytest.raises(SimulationFailed) as failed:
        simulate(seed, STEPS)
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
