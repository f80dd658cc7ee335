"""The simulation finds what it is there to find: a server with a fault does not pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from gearman_twisted.engine.backlog import Overflowing
from gearman_twisted.engine.endings import Endings
from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.lane import Lane
from gearman_twisted.engine.outbox import Outbox, Turn
from gearman_twisted.engine.queues import Queues
from gearman_twisted.engine.records import Connection, Gap, Job, LateJob, Reduction
from gearman_twisted.engine.reductions import Reductions
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.saves import Saves
from gearman_twisted.engine.states import State
from gearman_twisted.engine.submissions import Submissions
from gearman_twisted.engine.wakeups import Wakeups
from gearman_twisted.engine.workers import Workers
from gearman_twisted.store.batch import GroupCommit
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.schedule import Schedule
from gearman_twisted.wire.text import OK
from tests.simulation.__main__ import main
from tests.simulation.run import SimulationFailed, simulate

STEPS = 300_000

Patch = Callable[[type, str, Any], None]
Fault = Callable[[Patch], None]
FAULTS: dict[str, tuple[Fault, str, int]] = {}


def fault(message: str, seed: int = 1) -> Callable[[Fault], Fault]:
    """Register a fault, with what the simulation has to say of it, a regular expression.

    Args:
        message: the expression.
        seed: where it is found soon; only what takes a lot to show itself needs another one.
    """

    def register(function: Fault) -> Fault:
        FAULTS[function.__name__] = (function, message, seed)
        return function

    return register


def before_each_outbox(patch: Patch, change: Callable[[Outbox], None]) -> None:
    """Have something done to each Outbox before the server hands it out."""
    original = Turn.take

    def take(self: Turn) -> Outbox:
        change(self.out)
        return original(self)

    patch(Turn, "take", take)


def forget_later(patch: Patch) -> Callable[[Job], None]:
    """Return what has the store forget a job that goes on."""
    ids: list[int] = []

    def forget(out: Outbox) -> None:
        while ids:
            out.forget(ids.pop())

    def lose(job: Job) -> None:
        if job.is_stored:
            job.is_stored = False
            ids.append(job.id)

    before_each_outbox(patch, forget)
    return lose


@fault("was acknowledged before it was stored")
def does_not_save(patch: Patch) -> None:
    patch(Saves, "save", lambda *_: None)


@fault("was never sent")
def forgets_to_answer_a_save(patch: Patch) -> None:
    patch(Saves, "fulfil", lambda *_: None)


@fault("was acknowledged before it was stored", seed=3)
def takes_a_failed_save_for_a_good_one(patch: Patch) -> None:
    patch(JobServer, "save_failed", lambda self, ids, _reason, now: self.saved(ids, now))


@fault("was given out (before it was stored|out of turn)")
def gives_out_what_is_not_saved(patch: Patch) -> None:
    original = Submissions.begin

    def begin(self: Any, job: Job) -> None:
        original(self, job)
        if job.state is State.SAVING:
            self.admit(job)

    patch(Submissions, "begin", begin)


@fault("the server has it no more")
def loses_stored_jobs_at_the_start(patch: Patch) -> None:
    original = JobServer.restore

    def restore(self: Any, stored: Any, now: float) -> None:
        if stored.id % 5:
            original(self, stored, now)

    patch(JobServer, "restore", restore)


@fault("has not ended")
def forgets_too_early(patch: Patch) -> None:
    original = Endings.assign
    lose = forget_later(patch)

    def assign(self: Any, conn: Connection, job: Job) -> None:
        original(self, conn, job)
        lose(job)

    patch(Endings, "assign", assign)


@fault("is saved after it was forgotten")
def lets_a_forget_overtake_its_save(patch: Patch) -> None:
    original = GroupCommit._take
    patch(GroupCommit, "_drop", lambda _self, _number: False)

    def take(self: Any) -> Any:
        forgets, self._forgets = self._forgets, []
        return ([], forgets) if forgets else original(self)

    patch(GroupCommit, "_take", take)


@fault("the store still has|was cancelled, .*, and it comes back")
def never_forgets(patch: Patch) -> None:
    before_each_outbox(patch, lambda out: setattr(out, "forgets", []))


@fault("was cancelled, the operator was told, and it comes back")
def confirms_a_cancel_too_early(patch: Patch) -> None:
    patch(Saves, "confirm_cancel", lambda self, conn: conn.write(self._turn.out, OK))


@fault("was cancelled, the operator was told, and it comes back")
def confirms_what_the_store_refused(patch: Patch) -> None:
    original = Saves.forgotten
    patch(Saves, "forgotten", lambda self, number, _error: original(self, number, None))


@fault("is with connection")
def gives_a_job_to_two_workers(patch: Patch) -> None:
    original = Queues.pop

    def pop(self: Any, conn: Connection) -> Job | None:
        for worker in [worker for function in conn.abilities for worker in function.workers]:
            for job in worker.running:
                if job.state is State.RUNNING and job.function in conn.abilities:
                    job.state = State.QUEUED
                    return job
        return original(self, conn)

    patch(Queues, "pop", pop)


@fault("out of turn")
def serves_the_last_one_first(patch: Patch) -> None:
    original = Lane.push

    def push(self: Any, job: Job) -> None:
        jobs = [job]
        while (other := self.pop()) is not None:
            jobs.append(other)
        for each in jobs:
            original(self, each)

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
    patch(Overflowing, "recheck", lambda *_: None)


@fault("was acknowledged, and the server has it no more|the server still has")
def loses_what_it_cannot_find_in_time(patch: Patch) -> None:
    original = JobServer.loaded
    patch(JobServer, "loaded", lambda self, number, jobs, now: original(self, number, list(jobs)[1:], now))


@fault("was due|was answered with")
def answers_out_of_order(patch: Patch) -> None:
    patch(Connection, "leave_gap", lambda _self, size: Gap(size))
    patch(Connection, "fill_gap", lambda self, out, _gap, reply: self.is_open and self.write(out, reply))


@fault("for which it does not wait")
def tells_an_ending_twice(patch: Patch) -> None:
    original = Endings.forward

    def forward(self: Any, *args: Any) -> None:
        original(self, *args)
        original(self, *args)

    patch(Endings, "forward", forward)


@fault("was never told the end of")
def tells_no_ending(patch: Patch) -> None:
    patch(Endings, "forward", lambda *_: None)


@fault("and the job ended with")
def tells_another_ending(patch: Patch) -> None:
    original = Endings.forward

    def forward(self: Any, job: Job, type_: PacketType, args: list[bytes]) -> None:
        original(self, job, type_, [args[0], b"wrong"] if len(args) == 2 else args)

    patch(Endings, "forward", forward)


@fault("was sent ERROR")
def forgets_late_jobs(patch: Patch) -> None:
    patch(Connection, "remember_late", lambda *_: None)


@fault("has ended and was given out again|is over, and the server still has it")
def takes_no_late_result(patch: Patch) -> None:
    original = Workers._report_late

    def report_late(self: Any, late: LateJob, *args: Any) -> None:
        late.is_whole = False
        original(self, late, *args)

    patch(Workers, "_report_late", report_late)


@fault("and the job ended with None|has not ended")
def takes_a_late_result_whoever_has_begun(patch: Patch) -> None:
    original = Workers._report_late

    def report_late(self: Any, late: LateJob, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        job = self._register.jobs.get(args[0])
        if job is not None:
            late.attempts = job.attempts
        original(self, late, type_, conn, args)

    patch(Workers, "_report_late", report_late)


@fault("was sent ERROR")
def minds_a_failure_after_an_exception(patch: Patch) -> None:
    original = Workers._not_its_own

    def not_its_own(self: Any, type_: PacketType, conn: Connection, args: list[bytes]) -> None:
        conn.excepted = None
        original(self, type_, conn, args)

    patch(Workers, "_not_its_own", not_its_own)


@fault("none that was woken")
def wakes_nobody(patch: Patch) -> None:
    patch(Wakeups, "wake", lambda *_: None)


@fault("none that was woken")
def waits_for_the_woken_for_ever(patch: Patch) -> None:
    original = Wakeups.take_late

    def take_late(self: Any) -> list[Any]:
        original(self)
        return []

    patch(Wakeups, "take_late", take_late)


@fault("the server still has")
def keeps_something(patch: Patch) -> None:
    original = Endings.finish

    def finish(self: Any, job: Job) -> None:
        original(self, job)
        job.function.total += 1

    patch(Endings, "finish", finish)


@fault("and the job ended with")
def joins_results_as_they_come(patch: Patch) -> None:
    original = Reductions.receive_from_part

    def receive_from_part(self: Any, reduction: Reduction, part: Job, *args: Any) -> None:
        places = reduction.open
        reduction.open = dict(zip(places, reversed(places.values()), strict=True))
        original(self, reduction, part, *args)

    patch(Reductions, "receive_from_part", receive_from_part)


@fault("and the job ended with", seed=2)
def keeps_what_a_lost_worker_sent_of_a_part(patch: Patch) -> None:
    original = Reductions.requeued

    def requeued(self: Any, job: Job) -> None:
        if job.reduction is not None and job is job.reduction.whole:
            original(self, job)

    patch(Reductions, "requeued", requeued)


@fault("and the job ended with|is forgotten, and has not ended")
def waits_for_one_part_only(patch: Patch) -> None:
    original = Reductions.end_if_complete

    def end_if_complete(self: Any, reduction: Reduction) -> None:
        parts = reduction.open
        if any(reduction.results):
            reduction.open = {}
        original(self, reduction)
        reduction.open = parts

    patch(Reductions, "end_if_complete", end_if_complete)


@fault("has ended and was given out again|is over, and the server still has it")
def does_not_mind_a_part_that_failed(patch: Patch) -> None:
    original = Reductions.ended

    def ended(self: Any, job: Job) -> None:
        reduction = job.reduction
        if reduction is not None and job is not reduction.whole:
            job.reduction = None
            del reduction.open[job]
        else:
            original(self, job)

    patch(Reductions, "ended", ended)


@fault("is over, and the server still has it|has ended and was given out again")
def leaves_parts_behind(patch: Patch) -> None:
    def abandon_parts(_self: Any, reduction: Reduction) -> None:
        reduction.whole.reduction = None
        for part in reduction.open:
            part.reduction = None

    patch(Reductions, "abandon_parts", abandon_parts)


@fault("and the server has it no more")
def loses_what_is_reduced(patch: Patch) -> None:
    original = JobServer.disconnect

    def disconnect(self: Any, conn: int, now: float) -> Outbox:
        for job in [job for job in self.inspection.jobs.values() if job.state is State.REDUCING]:
            job.is_stored = False
            for client in job.clients or ():
                del client.waiting_for[job]
            job.clients = None
            self.operations.cancel(job.handle)
        return original(self, conn, now)

    patch(JobServer, "disconnect", disconnect)


@fault("no job was made of b'.*, a part of")
def drops_the_last_part(patch: Patch) -> None:
    original = Reductions.receive

    def receive(self: Any, job: Job, type_: PacketType, args: list[bytes]) -> bool:
        is_last = type_ is PacketType.WORK_COMPLETE and job.reduction and job is job.reduction.whole
        return original(self, job, type_, [args[0], b""] if is_last else args)

    patch(Reductions, "receive", receive)


@fault("which is a part")
def shows_parts_to_clients(patch: Patch) -> None:
    original = Reductions.receive

    def receive(self: Any, job: Job, type_: PacketType, args: list[bytes]) -> bool:
        return original(self, job, type_, args) and type_ is not PacketType.WORK_DATA

    patch(Reductions, "receive", receive)


@fault("is saved, and is a part of")
def saves_parts(patch: Patch) -> None:
    original = Submissions.make_part
    parts: list[Job] = []

    def make_part(self: Any, reduction: Reduction, workload: bytes) -> Job:
        part = original(self, reduction, workload)
        parts.extend([part] if reduction.whole.is_stored else [])
        return part

    def save(out: Outbox) -> None:
        while parts:
            out.save(parts.pop().stored())

    patch(Submissions, "make_part", make_part)
    before_each_outbox(patch, save)


@fault("which is not what was submitted")
def saves_no_reducer(patch: Patch) -> None:
    original = Job.stored
    patch(Job, "stored", lambda job: original(job)._replace(reducer=b""))


@fault("has not ended")
def forgets_what_is_split(patch: Patch) -> None:
    original = Reductions.end_if_complete
    lose = forget_later(patch)

    def end_if_complete(self: Any, reduction: Reduction) -> None:
        if reduction.open:
            lose(reduction.whole)
        original(self, reduction)

    patch(Reductions, "end_if_complete", end_if_complete)


@fault("does not name the reducer")
def keeps_the_reducer_to_itself(patch: Patch) -> None:
    original = Workers.grab

    def grab(self: Any, assign: PacketType, conn: Connection, args: list[bytes]) -> None:
        is_all = assign is PacketType.JOB_ASSIGN_ALL
        original(self, PacketType.JOB_ASSIGN_UNIQ if is_all else assign, conn, args)

    patch(Workers, "grab", grab)


@fault("no recurring job is due|is over, and the server still has it")
def keeps_the_recurring_job_that_was_replaced(patch: Patch) -> None:
    patch(Endings, "cancel_replaced", lambda _self, job: setattr(job, "replaces", None))


@fault("was answered with")
def keeps_the_old_schedule(patch: Patch) -> None:
    patch(Job, "asks_for", lambda *_: True)


@fault("is over, and the server still has it", seed=4)
def restores_what_was_replaced(patch: Patch) -> None:
    original = JobServer.restore

    def restore(self: Any, stored: Any, now: float) -> None:
        with pytest.MonkeyPatch.context() as while_restoring:
            while_restoring.setattr(Register, "recurring_of", lambda *_: None)
            original(self, stored, now)

    patch(JobServer, "restore", restore)


@fault("is due, and no job was made of it")
def makes_nothing_of_what_is_due(patch: Patch) -> None:
    patch(Submissions, "run_recurring", lambda *_: None)


@fault("no recurring job is due")
def makes_jobs_too_early(patch: Patch) -> None:
    original = Schedule.next_after
    patch(Schedule, "next_after", lambda schedule, now: int(now + original(schedule, now)) // 2 + 1)


@fault("KeyError: 'a bug'")
def raises(patch: Patch) -> None:
    calls = iter(range(10**9))

    def fail(_out: Outbox) -> None:
        if next(calls) == 1000:
            raise KeyError("a bug")

    before_each_outbox(patch, fail)


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
