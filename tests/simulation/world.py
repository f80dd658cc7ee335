"""One simulated server with its store, its peers and its clock, and what happens to it, step by step."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, cast

from twisted.internet.task import Clock

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import Outbox
from gearman_twisted.server.host import Host
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.engine_farm import NOON
from tests.simulation.checker import Checker
from tests.simulation.conditions import PREFIX, conditions_of
from tests.simulation.peers import Both, Client, Peer, Worker
from tests.simulation.records import Violation
from tests.simulation.store import SimulatedStore

P = PacketType

_TRACE = 120
_STEPS_PER_SCAN = 1024
_DRAIN_ROUNDS = 20_000
# By how much the wall clock is set: too little to be noticed, and less and more than a minute.
_JUMPS = (-3600.0, -70.0, -5.0, -0.05, 0.05, 5.0, 70.0, 3600.0)
_FUNCTIONS = (b"f", b"g", b"h", b"i", b"j", b"k", b"l", b"m", b"n", b"o", b"p", b"q")


class World:
    """A server and all that it has to do with.

    Args:
        seed: all that happens follows from it.

    Attributes:
        conditions: what it is like here.
        steps: how many events there have been.
        functions: the names that are used.
        submissions: how many there have been.
        handles: some that clients know, of jobs that may have ended.
        chance: the next number from 0 to 1; whatever is left to chance comes from here.
        trace: the last events.
    """

    def __init__(self, seed: int) -> None:
        random = Random(seed)
        self.chance = random.random
        self.conditions = conditions = conditions_of(random)
        self.steps = 0
        self.functions = _FUNCTIONS[: conditions.functions]
        self.submissions = 0
        self.handles: deque[bytes] = deque(maxlen=50)
        self.trace: deque[tuple[int, float, str, object]] = deque(maxlen=_TRACE)
        self._clock = Clock()
        self._clock.advance(NOON)
        self._wall_offset = self._highest_offset = 0.0
        self._store = SimulatedStore(
            self._clock,
            random,
            slowness=conditions.slowness,
            failures=conditions.failures,
            applied=self._applied,
            committed=self._committed,
        )
        settings = conditions.settings
        self.checker = Checker(
            self._store.rows,
            durable=conditions.durable,
            prefix=PREFIX,
            retries=settings.job_retries,
            max_reduced_bytes=settings.max_reduced_bytes,
            limited=self.functions[0] if conditions.max_queue else None,
            wakeup_timeout=settings.wakeup_timeout,
        )
        self._numbers = itertools.count(1)
        self._by_number: dict[int, Peer] = {}
        self._is_dying = False
        self._error: Exception | None = None
        self._story: tuple[tuple[int, float, str, object], ...] = ()
        self._crashes = conditions.crashes
        self._peers: list[Peer] = [
            *(Client(self) for _ in range(conditions.clients)),
            *(Worker(self) for _ in range(conditions.workers)),
            *(Both(self) for _ in range(conditions.both)),
        ]
        self._start()

    @property
    def now(self) -> float:
        """The time."""
        return self._clock.rightNow

    def wall(self) -> float:
        """The time by the wall clock, which may be set."""
        return self._clock.rightNow + self._wall_offset

    @property
    def story(self) -> Sequence[tuple[int, float, str, object]]:
        """The last events, up to what was wrong if something was."""
        return self._story or tuple(self.trace)

    def is_full(self) -> bool:
        """Whether clients had better wait."""
        return self._engine.job_count >= self.conditions.room

    def some_handle(self) -> bytes | None:
        """The handle of a job that may still be there."""
        return self.handles[int(self.chance() * len(self.handles))] if self.handles else None

    def some_data(self, kind: bytes) -> bytes:
        """What a worker sends; unlike all workloads, so that a part's job is known by it, or empty."""
        return b"" if self.chance() < 0.1 else b"%b%d" % (kind, int(self.chance() * 1e6))

    # The server.

    def _start(self) -> None:
        # Ids go on from the clock, as the service does it.
        self.checker.now = self.now
        self._engine = JobServer(
            self.conditions.settings, durable=self.conditions.durable, last_id=int(self.now * 1e6)
        )
        if self.conditions.max_queue:
            self._engine.operations.limit(self.functions[0], (self.conditions.max_queue,) * 3)
        watched = cast("JobServer", _WatchedEngine(self, self._engine))
        self._host = Host(watched, self._store, self._clock, self.wall)
        self._host.output = self
        self._host.start()
        self.checker.started(self._engine)

    def crash(self) -> None:
        """The process dies and starts again; peers find out when they have their turn."""
        self.trace.append((self.steps, self.now, "the server crashes", ""))
        self._store.crash()
        for call in list(self._clock.getDelayedCalls()):
            call.cancel()
        for peer in self._by_number.values():
            peer.forget()
        self._by_number.clear()
        self._clock.advance(0.5 * self.chance())
        self._start()

    def told(self, event: str, detail: object, tell: Callable[[], Outbox]) -> Outbox:
        """Have the engine told of something by its host."""
        self.trace.append((self.steps, self.now, event, detail))
        if self._is_dying:
            return Outbox()
        self.checker.now = self.now
        try:
            out = tell()
            self._look_at(out)
        except Exception as error:
            # The host logs it and goes on, so it is kept for the end of the step.
            if self._error is None:
                self._error = error
                self._story = tuple(self.trace)
            raise
        return out

    def _look_at(self, out: Outbox) -> None:
        if out.saves or out.forgets:
            self.trace.append((self.steps, self.now, "engine saves and forgets", (out.saves, out.forgets)))
            self.checker.asked_of_store(out)

    def _perform(self, out: Outbox) -> None:
        self._look_at(out)
        self._host.perform(out)

    # What the host has for connections, see ``Output``.

    def send(self, writes: dict[int, list[bytes]], closes: Sequence[int]) -> None:
        """Hand output to the peers, at once; connections are closed when time passes."""
        if self._is_dying:
            return
        checker = self.checker
        for number, chunks in writes.items():
            peer = self._by_number.get(number)
            if peer is None or peer.link is None:
                checker.fail(f"the engine writes to connection {number}, which is gone")
            if not chunks:
                checker.fail(f"the engine writes nothing to connection {number}")
            packets: list[Packet] = []
            for chunk in chunks if self.chance() < 0.1 else (b"".join(chunks),):
                packets += peer.replies.feed(chunk)
            for packet in packets:
                self.trace.append((self.steps, self.now, "server to", (number, packet)))
                checker.reply(peer.link, packet)
            peer.inbox.extend(packets)
        for number in closes:
            if self.conditions.settings.max_held_bytes > 2000:
                checker.fail(f"connection {number} was closed for no reason")
            self._clock.callLater(0, self._close, number)

    def opened(self) -> None:
        """The host has read the store."""

    def memory_used_up(self) -> None:
        """Never: there is no limit."""

    def saves_answered(self) -> None:
        """Some jobs were saved, or not."""

    def _close(self, number: int) -> None:
        if number in self._by_number:
            self.lose(self._by_number[number])

    def _applied(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        self.trace.append((self.steps, self.now, "store is asked for", (saves, forgets)))
        self.checker.applied(saves)

    def _committed(self, forgets: Sequence[int]) -> None:
        self.checker.committed(forgets)

    # The peers.

    def connect(self, peer: Peer) -> None:
        """A peer connects."""
        number = next(self._numbers)
        self.trace.append((self.steps, self.now, "connected", (number, type(peer).__name__)))
        self._by_number[number] = peer
        peer.link = self.checker.connected(number)
        self._perform(self._engine.connect(number, "192.0.2.1", self.now))

    def lose(self, peer: Peer) -> None:
        """A peer's connection is lost."""
        link = peer.link
        if link is not None:
            self.trace.append((self.steps, self.now, "lost", link.number))
            del self._by_number[link.number]
            self.checker.lost(link)
            peer.forget()
            self._perform(self._engine.disconnect(link.number, self.now))

    def deliver(self, peer: Peer, data: bytes) -> None:
        """The server reads something from a peer."""
        some: list[Packet] = []
        link = peer.link
        for packet in peer.requests.feed(data):
            # What comes before one that takes jobs away or may replace one, and after one that gives one
            # out, is given to the server by itself, so that it can be said from outside what came first.
            if some and packet.type in {P.CANT_DO, P.RESET_ABILITIES, P.SUBMIT_JOB_SCHED}:
                self._receive(peer, some)
                some = []
            some.append(packet)
            if packet.type in {P.GRAB_JOB, P.GRAB_JOB_UNIQ, P.GRAB_JOB_ALL}:
                self._receive(peer, some)
                some = []
            if peer.link is not link:
                return
        if some:
            self._receive(peer, some)

    def _receive(self, peer: Peer, packets: list[Packet]) -> None:
        link = peer.link
        if link is None:
            return
        checker = self.checker
        for packet in packets:
            self.trace.append((self.steps, self.now, "server from", (link.number, packet)))
            checker.request(link, packet)
        out = self._engine.receive(link.number, packets, self.now)
        checker.made_jobs()
        if self.chance() < self._crashes * 0.2:
            self.trace.append((self.steps, self.now, "it crashes before it sends what this asks for", ""))
            if (out.saves or out.forgets) and self.chance() < 0.5:
                checker.asked_of_store(out)
                # The store may answer at once: whom would the server tell?
                self._is_dying = True
                self._host.perform(out)
                self._is_dying = False
            self.crash()
        else:
            self._perform(out)

    # Time.

    def step(self) -> None:
        """Let a little time pass, and one thing happen."""
        self.steps += 1
        chance, conditions = self.chance, self.conditions
        seconds = 2 * conditions.pace * chance()
        if chance() < 0.002:
            seconds += 3 * chance()
        if chance() < conditions.jumps:
            self._wall_offset += _JUMPS[int(chance() * len(_JUMPS))]
            self._highest_offset = max(self._highest_offset, self._wall_offset)
            self.trace.append((self.steps, self.now, "wall clock is set", self._wall_offset))
        self._pass(seconds, is_late=conditions.late and chance() < 0.5)
        if chance() < self._crashes:
            self.crash()
        peers = self._peers
        peers[int(chance() * len(peers))].turn()
        self._check()

    def _pass(self, seconds: float, *, is_late: bool = False) -> None:
        if is_late:
            # The server has no time for what is due, and reads from its peers first.
            self._clock.rightNow += seconds
        else:
            self._clock.advance(seconds)
        self.checker.now = self.now

    def _check(self) -> None:
        checker = self.checker
        if self._error is not None or checker.violation is not None:
            raise Violation(checker.violation) from self._error
        if self._engine.next_deadline() > self._clock.rightNow:
            checker.check_wakeups()
        if self.steps % _STEPS_PER_SCAN == 0:
            checker.scan()

    # The end.

    def drain(self) -> None:
        """Drain the world, and check that nothing is left over."""
        self.trace.append((self.steps, self.now, "draining", ""))
        self._store.is_well = True
        # No job waits for hours.
        self._wall_offset = self._highest_offset
        self._crashes = 0.0
        for peer in self._peers:
            if isinstance(peer, Worker):
                self.lose(peer)
            elif peer.link is not None:
                peer.send_rest()
        # Two connections: what a worker is sent must not be held back behind the replies to ``cancel``.
        worker, operator = Client(self), Client(self)
        self.connect(worker)
        self.connect(operator)
        for function in self.functions:
            worker.send(P.CAN_DO, function)
        for _ in range(_DRAIN_ROUNDS):
            self.steps += 1
            worker.send(P.GRAB_JOB_UNIQ)
            worker.send_rest()
            has_job = False
            for packet in worker.inbox:
                if packet.type == P.JOB_ASSIGN_UNIQ:
                    has_job = True
                    worker.send(P.WORK_COMPLETE, packet.args[0], b"done")
            worker.inbox.clear()
            for handle in self._engine.inspection.recurring:
                operator.send_line(b"cancel job " + handle)
            operator.send_rest()
            self._check()
            if (
                not has_job
                and not (self._engine.job_count or self._engine.inspection.recurring)
                and not self._clock.getDelayedCalls()
            ):
                break
            if not has_job:
                self._pass(self._until_something_happens())
        else:
            self.checker.fail(f"the work does not end: {list(self._engine.views.jobs())[:3]}")
        self._finish([worker, operator])

    def _until_something_happens(self) -> float:
        times = [call.getTime() for call in self._clock.getDelayedCalls()]
        return max(0.0, min([self.now + 10.0, self._engine.next_deadline(), *times]) - self.now)

    def _finish(self, others: list[Peer]) -> None:
        checker = self.checker
        checker.check_all_answered()
        for peer in [*self._peers, *others]:
            self.lose(peer)
        self._check()
        left = self._engine.inspection.leftovers()
        if left:
            checker.fail(f"the server still has {left}")
        if self._store.rows:
            checker.fail(f"the store still has {list(self._store.rows.values())[:3]}")
        self._pass(2 * self.conditions.settings.wakeup_timeout)
        if self._engine.next_deadline() != float("inf"):
            checker.fail("the timer is still set")
        if self._host.unsaved or self._clock.getDelayedCalls():
            checker.fail("something still waits for the store")


class _WatchedEngine:
    """The engine as its host sees it: the checker and the trace hear of all that it is told.

    What peers do is told to the engine itself, by the world.
    """

    def __init__(self, world: World, engine: JobServer) -> None:
        self._world = world
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def set_wall_clock(self, offset: float) -> None:
        self._world.trace.append((self._world.steps, self._world.now, "server sees the wall clock", offset))
        self._world.checker.wall_clock_was_set(offset)
        self._engine.set_wall_clock(offset)

    def saved(self, ids: Sequence[int], now: float) -> Outbox:
        def tell() -> Outbox:
            self._world.checker.saved(ids)
            return self._engine.saved(ids, now)

        return self._world.told("store saved", ids, tell)

    def save_failed(self, ids: Sequence[int], reason: str, now: float) -> Outbox:
        return self._world.told("store failed", ids, lambda: self._engine.save_failed(ids, reason, now))

    def forgotten(self, number: int, error: str | None, now: float) -> Outbox:
        return self._world.told("store forgot", error, lambda: self._engine.forgotten(number, error, now))

    def loaded(self, number: int, jobs: Sequence[StoredJob], now: float) -> Outbox:
        ids = [job.id for job in jobs]
        return self._world.told("store has read", ids, lambda: self._engine.loaded(number, jobs, now))

    def tick(self, now: float) -> Outbox:
        def tell() -> Outbox:
            self._world.checker.ticked()
            out = self._engine.tick(now)
            self._world.checker.made_jobs()
            return out

        return self._world.told("tick", "", tell)
