"""The rules of the job server once more, as plainly as possible: lists, and a scan for everything.

It says what every peer has to be sent, packet by packet; only NOOPs are left out, as they are hints whose
number is the server's own business. It peeks at nothing but the handles of new jobs.
"""

from __future__ import annotations

import attrs

from gearman_twisted.wire.constants import PacketType, Priority
from gearman_twisted.wire.packet import Packet

P = PacketType


@attrs.define(eq=False)
class Slot:
    """A place in a peer's output, empty while its packet waits for the store."""

    packet: Packet | None = None


@attrs.define(eq=False)
class ModelPeer:
    """A peer: what it will be sent, what it can do, newest first, and what it runs, oldest first.

    Attributes:
        late: the jobs that a time limit took from it, with how often they had been taken from a worker then;
            None if data that it sent since were dropped.
        excepted: the job that it ended last with an exception.
    """

    number: int
    output: list[Slot] = attrs.field(factory=list)
    abilities: list[tuple[bytes, float]] = attrs.field(factory=list)
    running: list[ModelJob] = attrs.field(factory=list)
    late: dict[ModelJob, int | None] = attrs.field(factory=dict)
    excepted: ModelJob | None = None
    is_asleep: bool = False
    noop_at: float | None = None

    def expect(self, type_: int, *args: bytes) -> None:
        """It will be sent this packet."""
        self.output.append(Slot(Packet(type_, list(args))))

    def expect_later(self) -> Slot:
        """It will be sent a packet here, which is not known yet."""
        slot = Slot()
        self.output.append(slot)
        return slot

    def take_output(self) -> list[Packet]:
        """All that it must have been sent by now."""
        ready: list[Packet] = []
        while self.output and (packet := self.output[0].packet) is not None:
            ready.append(packet)
            self.output.pop(0)
        return ready

    def can_do(self, function: bytes) -> bool:
        """Whether it registered the function."""
        return any(name == function for name, _ in self.abilities)


@attrs.define(eq=False)
class ModelJob:
    """A job; ``state`` is one of saving, scheduled, queued, running, cancelled, ended."""

    handle: bytes
    function: bytes
    unique: bytes
    workload: bytes
    priority: Priority
    is_background: bool
    run_at: int
    state: str
    is_saving: bool = False
    is_stored: bool = False
    clients: list[ModelPeer] = attrs.field(factory=list)
    slots: list[Slot] = attrs.field(factory=list)
    worker: ModelPeer | None = None
    progress: tuple[bytes, bytes] = (b"0", b"0")
    attempts: int = 0
    due: float = 0.0

    def tell(self, type_: int, *args: bytes) -> None:
        """All its clients are sent a packet, once for each of their submissions."""
        for client in self.clients:
            client.expect(type_, self.handle, *args)

    def answer(self, type_: int, *args: bytes) -> None:
        """All who wait for its save are answered."""
        for slot in self.slots:
            slot.packet = Packet(type_, list(args))
        self.slots.clear()


class Model:
    """A job server."""

    def __init__(self, *, durable: bool, retries: int) -> None:
        self.durable = durable
        self.retries = retries
        self.now = 0.0
        self.peers: list[ModelPeer] = []
        self.jobs: list[ModelJob] = []
        # The queued jobs, in the order in which they were queued.
        self.queue: list[ModelJob] = []

    # Clients.

    def joined_by(self, function: bytes, unique: bytes) -> ModelJob | None:
        """The job that a submission would join."""
        for job in self.jobs:
            if unique and (job.function, job.unique) == (function, unique) and job.state != "cancelled":
                return job
        return None

    def join(self, peer: ModelPeer, job: ModelJob, is_background: bool) -> None:
        """A submission has the unique of a job."""
        if not is_background:
            job.clients.append(peer)
        elif not job.is_background:
            job.is_background = True
            job.is_saving = self.durable
        if job.is_saving and (is_background or job.state == "saving"):
            job.slots.append(peer.expect_later())
        else:
            peer.expect(P.JOB_CREATED, job.handle)

    def create(self, peer: ModelPeer, job: ModelJob) -> None:
        """A submission makes a new job."""
        self.jobs.append(job)
        if job.is_background and self.durable:
            job.state, job.is_saving = "saving", True
            job.slots.append(peer.expect_later())
            return
        if not job.is_background:
            job.clients.append(peer)
        self.admit(job)
        peer.expect(P.JOB_CREATED, job.handle)

    def admit(self, job: ModelJob) -> None:
        """A job may run from now on, or from its time on."""
        if job.run_at > self.now:
            job.state, job.due = "scheduled", job.run_at
        else:
            job.state, job.due = "queued", 0.0
            self.queue.append(job)

    def saved(self, job: ModelJob) -> None:
        """The store has a job."""
        job.is_saving, job.is_stored = False, True
        if job.state == "saving":
            self.admit(job)
        job.answer(P.JOB_CREATED, job.handle)

    def save_failed(self, job: ModelJob, error: Packet) -> None:
        """The store does not have a job."""
        job.is_saving = job.is_background = False
        job.answer(error.type, *error.args)
        if job.state == "saving":
            self.end(job)
        else:
            self.drop_if_unwanted(job)

    def cancel(self, job: ModelJob) -> None:
        """An operator cancels a job."""
        if job.state == "cancelled":
            return
        job.answer(P.JOB_CREATED, job.handle)
        job.tell(P.WORK_FAIL)
        job.clients.clear()
        if job.state == "running":
            job.state, job.is_saving, job.is_stored = "cancelled", False, False
        else:
            self.end(job)

    # Workers.

    def next_job(self, peer: ModelPeer) -> ModelJob | None:
        """The job that a worker gets if it grabs."""
        for priority in Priority:
            for function, _ in peer.abilities:
                for job in self.queue:
                    if (job.function, job.priority) == (function, priority):
                        return job
        return None

    def grab(self, peer: ModelPeer) -> None:
        """A worker asks for a job."""
        peer.is_asleep, peer.noop_at = False, None
        job = self.next_job(peer)
        if job is None:
            peer.expect(P.NO_JOB)
            return
        self.queue.remove(job)
        [ability] = [ability for ability in peer.abilities if ability[0] == job.function]
        peer.abilities.remove(ability)
        peer.abilities.append(ability)
        job.state, job.worker = "running", peer
        peer.running.append(job)
        job.due = self.now + ability[1] if ability[1] else 0.0
        peer.expect(P.JOB_ASSIGN_UNIQ, job.handle, job.function, job.unique, job.workload)

    def give_up(self, peer: ModelPeer, functions: list[bytes]) -> None:
        """A worker can no longer do these functions."""
        peer.abilities = [ability for ability in peer.abilities if ability[0] not in functions]
        peer.late = {job: attempts for job, attempts in peer.late.items() if job.function not in functions}
        for job in [job for job in reversed(peer.running) if job.function in functions]:
            self.take_away(job)

    def take_away(self, job: ModelJob) -> None:
        """A job loses its worker."""
        assert job.worker
        job.worker.running.remove(job)
        job.worker, job.due, job.progress = None, 0.0, (b"0", b"0")
        job.attempts += 1
        if job.state == "cancelled" or not (job.is_background or job.clients):
            self.end(job)
        elif self.retries >= 0 and job.attempts >= self.retries:
            job.tell(P.WORK_FAIL)
            self.end(job)
        else:
            job.state = "queued"
            self.queue.append(job)

    def report_late(self, peer: ModelPeer, job: ModelJob, type_: PacketType, args: list[bytes]) -> None:
        """A worker sends something about a job that a time limit took from it."""
        if type_ == P.WORK_DATA:
            peer.late[job] = None
        if type_ in {P.WORK_COMPLETE, P.WORK_FAIL, P.WORK_EXCEPTION}:
            attempts = peer.late.pop(job)
            if type_ == P.WORK_EXCEPTION:
                peer.excepted = job
            if type_ == P.WORK_COMPLETE and job.state == "queued" and job.attempts == attempts:
                job.tell(type_, *args)
                self.end(job)

    def end(self, job: ModelJob) -> None:
        """A job is over."""
        job.answer(P.JOB_CREATED, job.handle)
        if job in self.queue:
            self.queue.remove(job)
        if job.worker:
            job.worker.running.remove(job)
        self.jobs.remove(job)
        job.clients.clear()
        job.state, job.worker, job.is_saving, job.is_stored = "ended", None, False, False

    def drop_if_unwanted(self, job: ModelJob) -> None:
        """A job that waits, and that nobody waits for, is over."""
        if not job.is_background and not job.clients and job.state == "queued":
            self.end(job)

    # Everybody.

    def leave(self, peer: ModelPeer) -> None:
        """A peer is lost."""
        self.peers.remove(peer)
        for job in list(self.jobs):
            job.clients = [client for client in job.clients if client is not peer]
            self.drop_if_unwanted(job)
        self.give_up(peer, [name for name, _ in peer.abilities])

    def wait_until(self, now: float) -> None:
        """Time passes."""
        due = [job for job in self.jobs if job.due and job.due <= now]
        self.now = now
        for job in sorted(due, key=lambda job: job.due):
            if job.state == "scheduled":
                self.admit(job)
            else:
                worker = job.worker
                assert worker
                self.take_away(job)
                worker.late[job] = job.attempts

    def restart(self, handles: list[bytes]) -> None:
        """The server starts again with what the store has: these jobs, in this order."""
        kept = {job.handle: job for job in self.jobs if job.is_stored}
        assert sorted(kept) == sorted(handles), "the store has other jobs than it should have"
        self.peers.clear()
        self.queue.clear()
        self.jobs = [kept[handle] for handle in handles]
        for job in self.jobs:
            job.clients.clear()
            job.slots.clear()
            job.worker, job.progress, job.attempts = None, (b"0", b"0"), 0
            job.is_background, job.is_saving = True, False
            self.admit(job)
