"""Clients and workers that keep a server busy, and a ledger of what it promised and what was run.

All of it follows from a seed but for the timing, which is that of real processes and sockets.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import NamedTuple

from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from tests.kit.servers import PATIENCE, WirePeer

P = PacketType
SUBMITS = (P.SUBMIT_JOB_BG, P.SUBMIT_JOB_HIGH_BG, P.SUBMIT_JOB_LOW_BG, P.SUBMIT_JOB_EPOCH)
WORKED = (b"resize", b"mail")
LATER = b"later"
"""A function for which nobody works before ``Load.drain``."""

# Of one client: packets in one write, and of all: jobs that were acknowledged and not run yet.
MAX_BURST = 30
MAX_WAITING = 600
KEY_BYTES = 32


class Submission(NamedTuple):
    """A job as a client sent it.

    Attributes:
        function: what it was sent for.
        unique: may be empty.
        key: what its workload consists of, and no other one's; ends with how often it is repeated there.
    """

    function: bytes
    unique: bytes
    key: bytes

    @property
    def workload(self) -> bytes:
        return self.key * int(self.key[-4:])


class Promise(NamedTuple):
    """A submission that was acknowledged.

    Attributes:
        handle: the job's; that of an earlier one which has the same unique.
        submission: what was sent.
        sent: when, by the monotonic clock; the server joined no job that had ended before.
    """

    handle: bytes
    submission: Submission
    sent: float


class Ledger:
    """What clients sent and were told, and what workers did; for many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._submissions: dict[bytes, Submission] = {}
        self._handles: set[bytes] = set()
        self._run_keys: dict[bytes, bytes] = {}
        self._last_runs: dict[bytes, float] = {}
        self.promises: list[Promise] = []
        self.runs: Counter[bytes] = Counter()
        self.refused = 0
        self.given_back = 0
        self.faults: list[str] = []

    def submitted(self, submissions: Sequence[Submission]) -> None:
        """They are about to be sent."""
        with self._changed:
            self._submissions |= {each.key: each for each in submissions}

    def promised(self, promise: Promise) -> None:
        """A submission was acknowledged."""
        with self._changed:
            self.promises.append(promise)
            if promise.submission.function != LATER:
                self._handles.add(promise.handle)
            self._changed.notify_all()

    def refuse(self) -> None:
        """A submission was answered with an error: it may run, and need not."""
        with self._changed:
            self.refused += 1

    def ran(self, handle: bytes, workload: bytes) -> None:
        """A worker has ended a job, and the server knows it or was lost."""
        key = workload[:KEY_BYTES]
        with self._changed:
            submission = self._submissions.get(key)
            if submission is None or submission.workload != workload:
                self.faults.append(f"{handle!r} ran with what nobody sent: {workload!r:.100}")
            if self._run_keys.setdefault(handle, key) != key:
                self.faults.append(f"{handle!r} ran with two workloads")
            self.runs[handle] += 1
            self._last_runs[handle] = time.monotonic()
            self._changed.notify_all()

    def gave_back(self) -> None:
        """A worker left with a job that it had not ended."""
        with self._changed:
            self.given_back += 1

    def fault(self, text: str) -> None:
        """Something happened that never may."""
        with self._changed:
            self.faults.append(text)

    def await_(self, is_done: Callable[[], bool], timeout: float = PATIENCE) -> bool:
        """Wait until something holds of the ledger; return whether it came to that."""
        with self._changed:
            return self._changed.wait_for(is_done, timeout)

    def wake(self) -> None:
        """Let those who wait look again."""
        with self._changed:
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """About how many acknowledged jobs workers have to do."""
        return len(self._handles) - len(self.runs)

    @property
    def repeats(self) -> int:
        """How often a job was run that had been run before."""
        return self.runs.total() - len(self.runs)

    def check(self) -> list[str]:
        """What is wrong once nothing is left to run: what was lost, mixed up, or given out from nowhere."""
        wrong = list(self.faults)
        by_handle: defaultdict[bytes, list[Promise]] = defaultdict(list)
        for promise in self.promises:
            by_handle[promise.handle].append(promise)
            # To join a job that ran before, and was forgotten since, is no promise kept.
            if self._last_runs.get(promise.handle, 0.0) < promise.sent:
                wrong.append(f"lost: {promise.handle!r}, {promise.submission!r:.200}")
        for handle, key in self._run_keys.items():
            run = self._submissions.get(key)
            own = [promise.submission for promise in by_handle[handle]]
            if any(run and each != run and (not each.unique or each[:2] != run[:2]) for each in own):
                wrong.append(f"{handle!r} was given to different jobs: {run!r}, {own!r:.500}")
        return wrong

    def __str__(self) -> str:
        unknown = len(self._submissions) - len(self.promises) - self.refused
        return (
            f"{len(self.promises)} acknowledged, {self.refused} refused, {unknown} not answered; "
            f"{len(self.runs)} jobs ran, {self.repeats} repeats, {self.given_back} given back by workers"
        )


class Load:
    """Two clients and two workers of a server, each in a thread; ends with ``end``.

    Args:
        port: where the server is.
        ledger: what all of them write to.
        chance: gives each of them a seed.
        clients: how many submit.
        functions: those that the workers do, and clients submit besides ``LATER``.
        submits_later: whether clients submit jobs that nobody does yet.
        is_killed: whether the server is to be killed; otherwise a lost connection is a fault.
    """

    def __init__(
        self,
        port: int,
        ledger: Ledger,
        chance: random.Random,
        *,
        clients: int = 2,
        functions: Sequence[bytes] = WORKED,
        submits_later: bool = False,
        is_killed: bool = False,
    ) -> None:
        self._port = port
        self._ledger = ledger
        self._functions = functions
        self._submits = [*functions, LATER] if submits_later else list(functions)
        self._is_killed = is_killed
        self._stops = threading.Event()
        self._ends = threading.Event()
        self._peers: set[WirePeer] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(clients + 2)
        seeds = [chance.getrandbits(64) for _ in range(clients + 2)]
        self._clients = [self._pool.submit(self._run, self._submit, seed) for seed in seeds[2:]]
        self._workers = [self._pool.submit(self._run, self._work, seed) for seed in seeds[:2]]

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def stop_clients(self) -> None:
        """Let no more be submitted, and wait until all that was is answered."""
        self._stops.set()
        self._ledger.wake()
        _wait(self._clients)

    def end(self) -> None:
        """End what still runs; raise what went wrong in a thread."""
        self._ends.set()
        self._stops.set()
        self._ledger.wake()
        with self._lock:
            for peer in self._peers:
                _hang_up(peer)
        self._pool.shutdown()
        _wait([*self._clients, *self._workers])

    def _run(self, role: Callable[[WirePeer, random.Random], bool], seed: int) -> None:
        """Play a role, over a new connection for as long as it returns true."""
        chance = random.Random(seed)
        try:
            while not self._ends.is_set():
                with WirePeer(self._port) as peer, self._listed(peer):
                    if not role(peer, chance):
                        break
        except ConnectionError as error:
            self._lost(repr(error))

    @contextmanager
    def _listed(self, peer: WirePeer) -> Iterator[None]:
        """Let ``end`` hang up."""
        with self._lock:
            self._peers.add(peer)
            if self._ends.is_set():
                _hang_up(peer)
        try:
            yield
        finally:
            with self._lock:
                self._peers.remove(peer)

    def _lost(self, how: str) -> None:
        if not (self._is_killed or self._ends.is_set()):
            self._ledger.fault(f"a connection was lost: {how}")

    def _submit(self, peer: WirePeer, chance: random.Random) -> bool:
        """Submit burst after burst, each when the last one was answered."""
        while True:
            self._ledger.await_(lambda: self._stops.is_set() or self._ledger.waiting < MAX_WAITING, 3600)
            if self._stops.is_set():
                return False
            burst = [self._draw(chance) for _ in range(chance.randint(1, MAX_BURST))]
            self._ledger.submitted([submission for _, submission in burst])
            sent = time.monotonic()
            peer.socket.sendall(b"".join(packet for packet, _ in burst))
            for _, submission in burst:
                answer = peer.receive()
                if answer is None:
                    self._lost("a client's")
                    return False
                if answer.type == P.JOB_CREATED:
                    self._ledger.promised(Promise(answer.args[0], submission, sent))
                elif answer.type == P.ERROR:
                    self._ledger.refuse()
                else:
                    self._ledger.fault(f"a submit was answered with {answer!r:.200}")

    def _draw(self, chance: random.Random) -> tuple[bytes, Submission]:
        """A packet, and what it submits."""
        type_ = chance.choice(SUBMITS)
        function = chance.choice(self._submits)
        # A scheduled job is joined by no other one, and joins none.
        has_unique = type_ != P.SUBMIT_JOB_EPOCH and chance.random() < 0.3
        unique = b"unique %d" % chance.randrange(40) if has_unique else b""
        key = b"%028x%04d" % (chance.getrandbits(112), chance.choice((1, 4, 40, 400)))
        submission = Submission(function, unique, key)
        args = [function, unique, submission.workload]
        if type_ == P.SUBMIT_JOB_EPOCH:
            args.insert(2, b"%d" % (time.time() + chance.randrange(3)))
        return encode(REQ, type_, *args), submission

    def _work(self, peer: WirePeer, chance: random.Random) -> bool:
        """Grab one job after the other, and end it; return whether the server should be called again."""
        abilities = [encode(REQ, P.CAN_DO, function) for function in self._functions]
        peer.socket.sendall(b"".join(abilities) + encode(REQ, P.GRAB_JOB))
        done: tuple[bytes, bytes] | None = None
        try:
            while (packet := peer.receive()) is not None:
                if packet.type == P.NOOP:
                    peer.send(P.GRAB_JOB)
                    continue
                # An answer to the grab shows that the end of the last job was taken.
                if done is not None:
                    self._ledger.ran(*done)
                    done = None
                if packet.type == P.NO_JOB:
                    peer.send(P.PRE_SLEEP)
                elif packet.type != P.JOB_ASSIGN:
                    self._ledger.fault(f"a grab was answered with {packet!r:.200}")
                elif chance.random() < 0.01:
                    self._ledger.gave_back()
                    return True
                else:
                    handle, _, workload = packet.args
                    done = handle, workload
                    complete = encode(REQ, P.WORK_COMPLETE, handle, b"")
                    peer.socket.sendall(complete + encode(REQ, P.GRAB_JOB))
        finally:
            # Where the server is gone, this worker has run the job all the same.
            if done is not None:
                self._ledger.ran(*done)
        self._lost("a worker's")
        return False


def drain(port: int, ledger: Ledger, chance: random.Random) -> None:
    """Work off all that a server has, also what is due later and what nobody did before."""
    with (
        Load(port, ledger, chance, clients=0, functions=(*WORKED, LATER)),
        WirePeer(port) as operator,
    ):
        deadline = time.monotonic() + 2 * PATIENCE
        while jobs_left(operator):
            assert time.monotonic() < deadline, "jobs are left that no worker gets"
            time.sleep(0.05)


def jobs_left(operator: WirePeer) -> int:
    """How many jobs a server has, of whatever kind."""
    rows = operator.text(b"status", b".\n").splitlines()[:-1]
    return sum(int(row.split(b"\t")[1]) for row in rows)


def _hang_up(peer: WirePeer) -> None:
    with suppress(OSError):
        peer.socket.shutdown(socket.SHUT_RDWR)


def _wait(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.result(3 * PATIENCE)
