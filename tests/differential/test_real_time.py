"""Scripts that take real seconds: time limits that pass, and scheduled jobs whose time comes.

All of them are played at once, each to Debian's gearmand and to ours, both as processes.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.gearmand import Gearmand
from tests.kit.paths import doc_page
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer

P = PacketType
PAGE = doc_page("differences.md").read_text()

# How often a worker asks again that nothing else tells.
_PAUSE = 0.02

Item = tuple[bytes, ...]


class Stage:
    """One server while one script is played to it.

    Args:
        port: where it listens.

    Attributes:
        seen: who received what so far.
    """

    def __init__(self, port: int) -> None:
        self.seen: list[tuple[str, Item]] = []
        self._port = port
        self._handles: list[bytes] = []
        self._echoes = itertools.count()
        self._stack = ExitStack()

    def close(self) -> None:
        """All leave."""
        self._stack.close()

    def connect(self, name: str) -> Actor:
        """A peer."""
        return Actor(self, name, self._stack.enter_context(WirePeer(self._port)))

    def item(self, packet: Packet | None) -> Item:
        """A packet made comparable: handles are named in the order in which they are seen."""
        assert packet is not None, "closed"
        args = list(packet.args)
        for place, arg in enumerate(args):
            if arg.startswith(b"H:"):
                bare = arg.rstrip(b"\0")
                if bare not in self._handles:
                    self._handles.append(bare)
                args[place] = b"H%d" % self._handles.index(bare)
        return (PacketType(packet.type).name.encode(), *args)


class Actor:
    """A peer in a script; what it receives is noted."""

    def __init__(self, stage: Stage, name: str, peer: WirePeer) -> None:
        self._stage = stage
        self._name = name
        self._peer = peer

    def send(self, type_: PacketType, *args: bytes) -> None:
        """Sends a packet that has no answer."""
        self._peer.send(type_, *args)

    def receive(self) -> Packet:
        """The next packet; waits for it."""
        packet = self._peer.receive()
        self._stage.seen.append((self._name, self._stage.item(packet)))
        assert packet is not None
        return packet

    def ask(self, type_: PacketType, *args: bytes) -> Packet:
        """Sends a packet and waits for its answer."""
        self.send(type_, *args)
        return self.receive()

    def settle(self) -> list[PacketType]:
        """Waits until all that was sent has had its effects; returns what came meanwhile."""
        self.send(P.ECHO_REQ, b"settled")
        types = []
        while (packet := self._peer.receive()) is not None and packet.type != P.ECHO_RES:
            self._stage.seen.append((self._name, self._stage.item(packet)))
            types.append(PacketType(packet.type))
        return types

    def grab_in_time(self) -> None:
        """Asks for a job until there is one: gearmand 1.1 says nothing when a job's time has come."""
        pause = threading.Event()
        deadline = time.monotonic() + PATIENCE
        while (packet := self._peer.ask(P.GRAB_JOB_UNIQ)) is not None and packet.type == P.NO_JOB:
            assert time.monotonic() < deadline, "no job came"
            pause.wait(_PAUSE)
        self._stage.seen.append((self._name, self._stage.item(packet)))

    def grab_all(self) -> list[bytes]:
        """Takes all jobs that there are; returns their workloads."""
        found = []
        while (packet := self._peer.ask(P.GRAB_JOB_UNIQ)) is not None and packet.type != P.NO_JOB:
            found.append(packet.args[-1])
        return found

    def sleep(self) -> None:
        """Finds no job, and sleeps until there is one."""
        assert self.grab_all() == []
        self.send(P.PRE_SLEEP)
        assert self.settle() == []

    def lost_until(self, last: bytes, *functions: bytes) -> set[bytes]:
        """Takes jobs that others lose, until one is among them; returns the workloads of all."""
        for function in functions:
            self.send(P.CAN_DO, function)
        lost: set[bytes] = set()
        while last not in lost:
            self.ask(P.PRE_SLEEP)
            lost.update(self.grab_all())
        return lost


def time_to_come() -> bytes:
    """A second that is not there yet."""
    return b"%d" % (int(time.time()) + 2)


# Where both do the same: what each peer received is compared.


def too_slow(stage: Stage) -> None:
    """A job is taken from a worker that is too slow, and is given to another one."""
    client, slow, other = (stage.connect(name) for name in ("client", "slow", "other"))
    client.ask(P.SUBMIT_JOB, b"too slow", b"", b"w")
    slow.send(P.CAN_DO_TIMEOUT, b"too slow", b"1000")
    handle = slow.ask(P.GRAB_JOB_UNIQ).args[0]
    slow.send(P.WORK_STATUS, handle, b"1", b"2")
    client.receive()
    other.send(P.CAN_DO, b"too slow")
    other.sleep()
    other.receive()
    other.ask(P.GRAB_JOB_UNIQ)
    client.ask(P.GET_STATUS, handle)
    other.send(P.WORK_COMPLETE, handle, b"done")
    client.receive()


def too_slow_too_often(stage: Stage) -> None:
    """A job that was taken away too often fails."""
    client, first, second = (stage.connect(name) for name in ("client", "first", "second"))
    handle = client.ask(P.SUBMIT_JOB, b"too often", b"", b"w").args[0]
    for worker in (first, second):
        worker.send(P.CAN_DO_TIMEOUT, b"too often", b"1000")
    first.ask(P.GRAB_JOB_UNIQ)
    second.sleep()
    second.receive()
    second.ask(P.GRAB_JOB_UNIQ)
    client.receive()
    client.ask(P.GET_STATUS, handle)


def scheduled(stage: Stage) -> None:
    """A scheduled job waits for its time, also when somebody joins it; then it runs for both."""
    client, joiner, worker = (stage.connect(name) for name in ("client", "joiner", "worker"))
    run_at = time_to_come()
    handle = client.ask(P.SUBMIT_JOB_EPOCH, b"scheduled", b"u", run_at, b"w").args[0]
    joiner.ask(P.SUBMIT_JOB, b"scheduled", b"u", b"other")
    worker.send(P.CAN_DO, b"scheduled")
    assert worker.grab_all() == []
    client.ask(P.GET_STATUS, handle)
    worker.grab_in_time()
    assert time.time() >= int(run_at)
    worker.send(P.WORK_COMPLETE, handle, b"done")
    joiner.receive()
    assert client.settle() == []


# Where they do not: each says what came of it.


def one_limit_a_connection(stage: Stage) -> object:
    """A worker has two jobs with a limit, another one has one: which jobs are taken away?"""
    client, slow, clock, other = (stage.connect(name) for name in ("client", "slow", "clock", "other"))
    slow.send(P.CAN_DO_TIMEOUT, b"two", b"1000")
    clock.send(P.CAN_DO_TIMEOUT, b"one", b"1000")
    for worker, function, workload in ((slow, b"two", b"1"), (slow, b"two", b"2"), (clock, b"one", b"clock")):
        client.ask(P.SUBMIT_JOB_BG, function, b"", workload)
        worker.ask(P.GRAB_JOB_UNIQ)
    return other.lost_until(b"clock", b"two", b"one")


def late_results(stage: Stage) -> object:
    """Jobs are taken from two workers, and one is given to another one: what are their results answered?"""
    client, waits, again, clock, other = map(stage.connect, ("client", "waits", "again", "clock", "other"))
    handles = []
    for worker, function in ((waits, b"waits"), (again, b"again"), (clock, b"late clock")):
        worker.send(P.CAN_DO_TIMEOUT, function, b"1000")
        client.ask(P.SUBMIT_JOB, function, b"", function)
        handles.append(worker.ask(P.GRAB_JOB_UNIQ).args[0])
    other.lost_until(b"late clock", b"again", b"late clock")
    waits.send(P.WORK_COMPLETE, handles[0], b"late")
    again.send(P.WORK_COMPLETE, handles[1], b"late")
    return waits.settle(), again.settle(), client.settle()


def sleeps_with_a_job(stage: Stage) -> object:
    """A worker sleeps while it has a job with a limit, another one does not: which jobs are taken away?"""
    client, sleeper, clock, other = (stage.connect(name) for name in ("client", "sleeper", "clock", "other"))
    for worker, function in ((sleeper, b"sleeps"), (clock, b"does not")):
        client.ask(P.SUBMIT_JOB_BG, function, b"", function)
        worker.send(P.CAN_DO_TIMEOUT, function, b"1000")
        worker.ask(P.GRAB_JOB_UNIQ)
        if worker is sleeper:
            sleeper.sleep()
    return other.lost_until(b"does not", b"sleeps", b"does not")


def wakes(stage: Stage) -> object:
    """When is a worker woken that sleeps before, and when one that sleeps after a job is scheduled?"""
    client, before, after, clock = (stage.connect(name) for name in ("client", "before", "after", "clock"))
    before.send(P.CAN_DO, b"before")
    before.sleep()
    run_at = time_to_come()
    for function in (b"before", b"after", b"clock"):
        client.ask(P.SUBMIT_JOB_EPOCH, function, b"", run_at, b"w")
    after.send(P.CAN_DO, b"after")
    after.sleep()
    at_once = before.settle()
    clock.send(P.CAN_DO, b"clock")
    clock.grab_in_time()
    return at_once, before.settle(), after.settle()


def place(stage: Stage) -> object:
    """A job is scheduled, another one comes before its time: which is the first?"""
    client, worker, clock = (stage.connect(name) for name in ("client", "worker", "clock"))
    run_at = time_to_come()
    client.ask(P.SUBMIT_JOB_EPOCH, b"place", b"", run_at, b"scheduled")
    client.ask(P.SUBMIT_JOB_BG, b"place", b"", b"at once")
    client.ask(P.SUBMIT_JOB_EPOCH, b"place clock", b"", run_at, b"w")
    clock.send(P.CAN_DO, b"place clock")
    clock.grab_in_time()
    worker.send(P.CAN_DO, b"place")
    return worker.grab_all()


ALIKE: list[Callable[[Stage], object]] = [too_slow, too_slow_too_often, scheduled]
DIFFERENT: dict[Callable[[Stage], object], tuple[str, object, object]] = {
    one_limit_a_connection: (
        "one CAN_DO_TIMEOUT timer a connection, which may outlive its job",
        {b"1", b"clock"},
        {b"1", b"2", b"clock"},
    ),
    late_results: (
        (
            "what a worker sends about a job after its time limit is `JOB_NOT_FOUND`, which ends Perl's "
            "worker and PHP's `work()`"
        ),
        ([P.ERROR], [P.ERROR], []),
        ([], [], [P.WORK_COMPLETE]),
    ),
    sleeps_with_a_job: (
        "PRE_SLEEP stops the clock of the job that runs",
        {b"does not"},
        {b"does not", b"sleeps"},
    ),
    wakes: (
        "a scheduled job wakes workers when it is submitted, too",
        ([P.NOOP], [], []),
        ([], [P.NOOP], [P.NOOP]),
    ),
    place: (
        "a scheduled job has its place from when it was submitted",
        [b"scheduled", b"at once"],
        [b"at once", b"scheduled"],
    ),
}
"""The row in differences.md that a script shows, its result with gearmand, and with ours."""

Outcome = tuple[object, list[tuple[str, Item]]]


def play(script: Callable[[Stage], object], port: int) -> Outcome:
    """Plays a script; returns its own answer, and what all peers received."""
    stage = Stage(port)
    try:
        return script(stage), stage.seen
    finally:
        stage.close()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Future[Outcome], ...]]]:
    """All scripts, played at once to both servers: for each what gearmand did, and what ours did."""
    gearmand = Gearmand(tmp_path_factory.mktemp("gearmand"), "-t", "1", "-j", "2")
    directory = tmp_path_factory.mktemp("ours")
    options = ("--store=memory:", "--order=1.1", "--job-retries=2")
    scripts = [*ALIKE, *DIFFERENT]
    try:
        with TwistdGearman(directory, *options) as ours, ThreadPoolExecutor(2 * len(scripts)) as pool:
            yield {
                script.__name__: tuple(pool.submit(play, script, port) for port in (gearmand.port, ours.port))
                for script in scripts
            }
    finally:
        gearmand.close()


@pytest.mark.parametrize("script", ALIKE)
def test_both_do_the_same(
    script: Callable[[Stage], object], outcomes: dict[str, tuple[Future[Outcome], ...]]
) -> None:
    """Every peer receives the same from both."""
    theirs, ours = (outcome.result()[1] for outcome in outcomes[script.__name__])
    assert theirs == ours


@pytest.mark.parametrize("script", DIFFERENT)
def test_difference_is_there(
    script: Callable[[Stage], object], outcomes: dict[str, tuple[Future[Outcome], ...]]
) -> None:
    """Each server does what the documentation says of it."""
    row, *expected = DIFFERENT[script]
    assert [outcome.result()[0] for outcome in outcomes[script.__name__]] == expected
    assert f"| {row} |" in PAGE
