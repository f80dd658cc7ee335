"""The server against a model of it: whatever happens, every peer is sent what the model says.

Several peers, each client and worker at once, submit, join, grab, end, sleep, give up and leave, while a
store saves and fails when it likes, time passes, and the process dies.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_state_machine

from gearman_twisted.engine.settings import EngineSettings
from tests.kit.engine_farm import Farm, P, Peer, packet
from tests.kit.engine_model import Model, ModelJob, ModelPeer
from tests.kit.submits import PLAIN_SUBMITS, SUBMITS

LATE = EngineSettings().wakeup_timeout
MAX_PEERS = 5

FUNCTIONS = [b"f", b"g", b"h"]

# Few functions and uniques, so that jobs meet; and more peers to pick than there are, for all to be picked.
functions = st.sampled_from([b"f", b"f", b"f", b"g", b"h"])
uniques = st.sampled_from([b"u", b"u", b"v", b""])
picks = st.integers(min_value=0, max_value=11)
reports = st.sampled_from([P.WORK_COMPLETE, P.WORK_FAIL, P.WORK_EXCEPTION, P.WORK_DATA, P.WORK_STATUS])
# For what would end all that is going on if it came as often as the rest.
seldom = st.sampled_from([False, False, False, True])


class ServerAndModel(RuleBasedStateMachine):
    """Does the same things to a server and to the model."""

    @initialize(durable=st.sampled_from([True, True, False]), retries=st.sampled_from([-1, 1, 2]))
    def start(self, durable: bool, retries: int) -> None:
        """A server with two clients and two workers."""
        self.farm = Farm(
            durable=durable, settings=EngineSettings(handle_prefix=b"H:farm", job_retries=retries)
        )
        self.model = Model(durable=durable, retries=retries)
        self.model.now = self.farm.now
        self.workloads = 0
        self.handles: list[bytes] = []
        self._connect_some()

    # Helpers.

    def _connect_some(self) -> None:
        for names in ([], [], FUNCTIONS, FUNCTIONS):
            self._connect(names)

    def _connect(self, names: list[bytes]) -> None:
        peer = ModelPeer(self.farm.connect().number)
        self.model.peers.append(peer)
        for name in names:
            self._real(peer).send(P.CAN_DO, name)
            peer.abilities.insert(0, (name, 0.0))

    def _peer(self, pick: int) -> ModelPeer:
        return self.model.peers[pick % len(self.model.peers)]

    def _real(self, peer: ModelPeer) -> Peer:
        return self.farm.peers[peer.number]

    def _waiting_jobs(self, count: int) -> list[ModelJob]:
        """Those of the first jobs in the store's queue that have not ended."""
        live = {job.handle: job for job in self.model.jobs if job.is_saving}
        return [live[stored.handle] for stored in self.farm.saves[:count] if stored.handle in live]

    def _answer_saves(self, count: int, *, is_good: bool) -> None:
        jobs = self._waiting_jobs(count)
        farm, later = self.farm, self.farm.saves[count:]
        farm.saves = farm.saves[:count]
        if is_good:
            farm.save_all()
        else:
            farm.fail_saves()
        farm.saves = later + farm.saves
        for job in jobs:
            if is_good:
                self.model.saved(job)
            else:
                error = packet(P.ERROR, b"QUEUE_ERROR", b"The job was not stored: disk full")
                self.model.save_failed(job, error)

    def _wait(self, seconds: float) -> None:
        self.farm.wait(seconds)
        self.model.wait_until(self.farm.now)

    # What may happen.

    @precondition(lambda self: len(self.model.peers) < MAX_PEERS)
    @rule(names=st.sampled_from([[], FUNCTIONS, [b"h", b"f"], [b"g"]]))
    def connect(self, names: list[bytes]) -> None:
        """A peer comes."""
        self._connect(names)

    @precondition(lambda self: len(self.model.peers) > 2)
    @rule(pick=picks)
    def leave(self, pick: int) -> None:
        """A peer is lost."""
        self._leave(self._peer(pick))

    def _leave(self, peer: ModelPeer) -> None:
        self._real(peer).leave()
        self.model.leave(peer)

    @rule(pick=picks, type_=st.sampled_from(list(PLAIN_SUBMITS)), function=functions, unique=uniques)
    def submit(self, pick: int, type_: P, function: bytes, unique: bytes) -> None:
        """A peer submits a job, or joins one."""
        self._submit(pick, type_, function, unique)

    @rule(pick=picks, function=functions, unique=uniques, seconds=st.sampled_from([-1, 0, 1, 2, 5]))
    def schedule(self, pick: int, function: bytes, unique: bytes, seconds: int) -> None:
        """A peer submits a job for later, or joins one."""
        self._submit(pick, P.SUBMIT_JOB_EPOCH, function, unique, seconds)

    @rule(
        steps=st.lists(
            st.tuples(picks, st.sampled_from([P.SUBMIT_JOB, P.SUBMIT_JOB_BG])), min_size=2, max_size=4
        ),
        function=functions,
        unique=uniques,
    )
    def submit_together(self, steps: list[tuple[int, P]], function: bytes, unique: bytes) -> None:
        """Several peers want the same at the same time."""
        for pick, type_ in steps:
            self._submit(pick, type_, function, unique)

    def _submit(self, pick: int, type_: P, function: bytes, unique: bytes, delay: int = 0) -> None:
        peer = self._peer(pick)
        self.workloads += 1
        workload = b"%d" % self.workloads
        priority, is_background = SUBMITS[type_]
        run_at = int(self.farm.now) + delay if type_ == P.SUBMIT_JOB_EPOCH else 0
        epoch = [b"%d" % run_at] if type_ == P.SUBMIT_JOB_EPOCH else []
        known = len(self.model.jobs)
        self._real(peer).send(type_, function, unique, *epoch, workload)
        engine_jobs = list(self.farm.engine.views.jobs())
        joined = self.model.joined_by(function, unique)
        if joined:
            assert len(engine_jobs) == known
            self.model.join(peer, joined, is_background)
            return
        assert len(engine_jobs) == known + 1
        handle = engine_jobs[-1].handle
        assert handle not in self.handles
        self.handles.append(handle)
        self.model.create(
            peer, ModelJob(handle, function, unique, workload, priority, is_background, run_at, "new")
        )

    @rule(picked=st.lists(picks, min_size=1, max_size=4))
    def grab(self, picked: list[int]) -> None:
        """Workers ask for jobs."""
        for pick in picked:
            peer = self._peer(pick)
            self._real(peer).send(P.GRAB_JOB_UNIQ)
            self.model.grab(peer)

    @precondition(lambda self: self.model.queue)
    @rule(pick=picks)
    def grab_what_is_there(self, pick: int) -> None:
        """A worker that can do the first job that is queued asks for one."""
        function = self.model.queue[0].function
        able = [number for number, peer in enumerate(self.model.peers) if peer.can_do(function)]
        if able:
            self.grab([able[pick % len(able)]])

    @precondition(lambda self: any(peer.running for peer in self.model.peers))
    @rule(pick=picks)
    def lose_a_worker(self, pick: int) -> None:
        """A peer that runs a job is lost, and another one comes."""
        busy = [peer for peer in self.model.peers if peer.running]
        self._leave(busy[pick % len(busy)])
        self._connect(FUNCTIONS)

    @rule(pick=picks)
    def sleep(self, pick: int) -> None:
        """A worker goes to sleep."""
        peer = self._peer(pick)
        self._real(peer).send(P.PRE_SLEEP)
        if self.model.next_job(peer) is None:
            peer.is_asleep, peer.noop_at = True, None
        elif not peer.output:
            assert self._read(peer) == [packet(P.NOOP)]

    @precondition(lambda self: any(peer.noop_at is not None for peer in self.model.peers))
    @rule(pick=picks, how=st.sampled_from(["sleep", "leave", "give up", "sleep and leave", "sleep and wait"]))
    def do_not_come(self, pick: int, how: str) -> None:
        """A worker that was woken does something else than to grab."""
        woken = [peer for peer in self.model.peers if peer.noop_at is not None]
        peer = woken[pick % len(woken)]
        number = self.model.peers.index(peer)
        if how.startswith("sleep"):
            self.sleep(number)
        if how == "give up":
            self.give_up(number, b"f", is_all=False, is_so=True)
        elif how.endswith("leave"):
            self._leave(peer)
            self._connect([])
        elif how.endswith("wait"):
            self._wait(1.1 * LATE)

    @rule(is_drained=st.booleans())
    def all_sleep(self, is_drained: bool) -> None:
        """Everyone goes to sleep, as workers do when there is nothing left."""
        for number, peer in enumerate(self.model.peers):
            while is_drained and self.model.next_job(peer):
                self.grab([number])
                self.work(0, P.WORK_COMPLETE)
            self.check_output()
            self.sleep(number)

    @precondition(lambda self: any(peer.running for peer in self.model.peers))
    @rule(
        pick=picks,
        type_=reports,
    )
    def work(self, pick: int, type_: P) -> None:
        """A worker sends something about a job that it runs."""
        running = [job for peer in self.model.peers for job in peer.running]
        job = running[pick % len(running)]
        assert job.worker
        args = {P.WORK_FAIL: [], P.WORK_STATUS: [b"%d" % pick, b"12"]}.get(type_, [b"data"])
        self._real(job.worker).send(type_, job.handle, *args)
        if type_ == P.WORK_EXCEPTION:
            job.worker.excepted = job
            for client in job.clients:
                client.expect(P.WORK_FAIL, job.handle)
        else:
            job.tell(type_, *args)
        if type_ == P.WORK_STATUS:
            job.progress = (args[0], args[1])
        elif type_ != P.WORK_DATA:
            self.model.end(job)

    @precondition(lambda self: self.handles)
    @rule(pick=picks, which=st.integers(min_value=0))
    def work_on_the_wrong_job(self, pick: int, which: int) -> None:
        """A peer sends a result for a job that may not be its own."""
        peer, handle = self._peer(pick), self.handles[which % len(self.handles)]
        if all(job.handle != handle for job in [*peer.running, *peer.late]):
            self._real(peer).complete(handle)
            peer.expect(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")

    @precondition(lambda self: any(peer.late for peer in self.model.peers))
    @rule(pick=picks, type_=reports)
    def work_late(self, pick: int, type_: P) -> None:
        """A worker sends something about a job that a time limit took from it and that it does not run."""
        late = [(peer, job) for peer in self.model.peers for job in peer.late if job not in peer.running]
        if late:
            peer, job = late[pick % len(late)]
            args = {P.WORK_FAIL: [], P.WORK_STATUS: [b"%d" % pick, b"12"]}.get(type_, [b"late"])
            self._real(peer).send(type_, job.handle, *args)
            self.model.report_late(peer, job, type_, args)

    @precondition(lambda self: any(peer.running for peer in self.model.peers))
    @rule(pick=picks, seconds=st.sampled_from([1, 3]), type_=reports)
    def be_late(self, pick: int, seconds: int, type_: P) -> None:
        """Time passes while jobs run, and a worker reports after its limit."""
        self._wait(seconds)
        self.work_late(pick, type_)

    @precondition(lambda self: any(peer.excepted for peer in self.model.peers))
    @rule(pick=picks)
    def fail_after_an_exception(self, pick: int) -> None:
        """A worker sends WORK_FAIL, too, for the job that it ended last with an exception."""
        peers = [peer for peer in self.model.peers if peer.excepted]
        peer = peers[pick % len(peers)]
        job = peer.excepted
        assert job
        if job not in peer.running and job not in peer.late:
            self._real(peer).send(P.WORK_FAIL, job.handle)
            peer.excepted = None

    @precondition(lambda self: self.handles)
    @rule(pick=picks, which=st.integers(min_value=0))
    def ask(self, pick: int, which: int) -> None:
        """A peer asks for the status of a job."""
        peer, handle = self._peer(pick), self.handles[which % len(self.handles)]
        self._real(peer).send(P.GET_STATUS, handle)
        for job in self.model.jobs:
            if job.handle == handle:
                running = b"1" if job.worker else b"0"
                peer.expect(P.STATUS_RES, handle, b"1", running, *job.progress)
                return
        peer.expect(P.STATUS_RES, handle, b"0", b"0", b"0", b"0")

    @rule(pick=picks, function=functions, seconds=st.sampled_from([0, 0, 2]))
    def can_do(self, pick: int, function: bytes, seconds: int) -> None:
        """A worker registers a function, with or without a time limit."""
        peer = self._peer(pick)
        self._real(peer).send(P.CAN_DO_TIMEOUT, function, b"%d000" % seconds)
        peer.abilities = [ability for ability in peer.abilities if ability[0] != function]
        peer.abilities.insert(0, (function, float(seconds)))

    @rule(pick=picks, function=functions, is_all=seldom, is_so=seldom)
    def give_up(self, pick: int, function: bytes, is_all: bool, is_so: bool) -> None:
        """A worker gives up a function, or all of them."""
        peer = self._peer(pick)
        if not is_so:
            return
        if is_all:
            self._real(peer).send(P.RESET_ABILITIES)
            self.model.give_up(peer, [name for name, _ in peer.abilities])
        else:
            self._real(peer).send(P.CANT_DO, function)
            self.model.give_up(peer, [function])

    @precondition(lambda self: self.model.jobs)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        """An operator cancels a job."""
        job = self.model.jobs[pick % len(self.model.jobs)]
        operator = self.farm.connect()
        assert operator.ask(b"cancel job " + job.handle) == b"OK\r\n"
        operator.leave()
        self.model.cancel(job)

    @precondition(lambda self: self.farm.saves)
    @rule(count=st.integers(min_value=1, max_value=4))
    def save(self, count: int) -> None:
        """The store saves the first jobs that wait."""
        self._answer_saves(count, is_good=True)

    @precondition(lambda self: self.farm.saves)
    @rule(count=st.integers(min_value=1, max_value=4))
    def fail_to_save(self, count: int) -> None:
        """The store fails to."""
        self._answer_saves(count, is_good=False)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._wait(seconds)

    @rule()
    def wait_for_the_late(self) -> None:
        """After long enough without a grab, nobody sleeps who could do a job that is queued."""
        # All that is scheduled or timed is due after five seconds; then one worker after the other is late.
        self._wait(5 + LATE * (MAX_PEERS + 1))
        self.check_output()
        for job in self.model.queue:
            for peer in self.model.peers:
                assert not (peer.is_asleep and peer.can_do(job.function) and not peer.output), job

    @rule(is_committed=st.booleans(), is_so=seldom)
    def crash(self, is_committed: bool, is_so: bool) -> None:
        """The process dies, perhaps between a commit and its replies, and starts again; peers come back."""
        if not is_so:
            return
        if is_committed:
            for job in self._waiting_jobs(len(self.farm.saves)):
                job.is_stored = True
            self.farm.commit()
        self.farm.restart()
        self.model.restart([self.farm.kept[id_].handle for id_ in sorted(self.farm.kept)])
        self._connect_some()

    # What is always true.

    def _read(self, peer: ModelPeer) -> list[Any]:
        packets = self._real(peer).read()
        if packet(P.NOOP) in packets:
            peer.is_asleep, peer.noop_at = False, self.farm.now
        return packets

    @invariant()
    def check_output(self) -> None:
        """Every peer was sent just what the model says, in its order."""
        for peer in self.model.peers:
            sent = [found for found in self._read(peer) if found.type != P.NOOP]
            assert sent == peer.take_output()

    @invariant()
    def check_store(self) -> None:
        """The store has every job that it promised and that has not ended, and no other."""
        stored = sorted(job.handle for job in self.model.jobs if job.is_stored)
        assert sorted(job.handle for job in self.farm.kept.values()) == stored
        assert self.farm.engine.snapshot().jobs == len(self.model.jobs)

    @invariant()
    def check_wakeups(self) -> None:
        """While a worker sleeps that could do a queued job, another one was woken and is not late yet."""
        for job in self.model.queue:
            able = [peer for peer in self.model.peers if peer.can_do(job.function)]
            # The NOOP of a peer that waits for the store is on its way.
            if any(peer.is_asleep for peer in able) and not any(peer.output for peer in able):
                woken = [peer.noop_at for peer in able if peer.noop_at is not None]
                assert woken, f"nobody was woken for {job}"
                assert max(woken) + LATE >= self.farm.now

    @invariant()
    def let_the_clock_run(self) -> None:
        """No two steps are at the same time, so that time limits never tie."""
        self._wait(0.001)

    def teardown(self) -> None:
        """When all is saved, run and left, nothing is left over."""
        if not hasattr(self, "model"):
            return
        while self.farm.saves:
            self._answer_saves(1, is_good=True)
        self.check_output()
        for peer in list(self.model.peers):
            self._leave(peer)
        self._wait(60)
        worker = self.farm.worker(*FUNCTIONS)
        todo = {job.handle for job in self.model.jobs}
        while handle := worker.grab():
            todo.remove(handle)
            worker.complete(handle)
        assert not todo
        worker.leave()
        assert self.farm.leftovers() == {}
        assert self.farm.kept == {}


def test_server_does_what_the_model_says() -> None:
    """Random histories, a few hundred of them."""
    run_state_machine(
        ServerAndModel,
        settings=settings(
            max_examples=300,
            stateful_step_count=60,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_server_does_what_the_model_says_for_long() -> None:
    """Many and longer random histories; GEARMAN_SOAK_EXAMPLES says how many."""
    run_state_machine(
        ServerAndModel,
        settings=settings(
            max_examples=int(os.environ.get("GEARMAN_SOAK_EXAMPLES", "3000")),
            stateful_step_count=100,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
