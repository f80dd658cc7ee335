"""``gearman_twisted.testing``, used as its users do, and what it promises of time, order and faults."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import error
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol

from gearman_twisted import GearmanWorker, Job, function
from gearman_twisted.client.many import Task, gather
from gearman_twisted.client.session import JobStatus
from gearman_twisted.errors import ConfigError, ConnectionLost, JobFailed, NoServers, RetryLater
from gearman_twisted.store.memory import MemoryStore
from gearman_twisted.testing import DurableMemoryStore, EndlessLoop, GearmanTestMixin, MemoryFarm, NotFinished
from gearman_twisted.testing.network import Network
from gearman_twisted.worker.executors import in_process, in_thread
from tests.kit.paths import doc_page
from tests.kit.servers import PATIENCE, run


def reverse(job: Job) -> bytes:
    """What most workers here do."""
    return job.workload[::-1]


def write_examples(page: Path, directory: Path) -> list[str]:
    """Write each example of a page to the file that its first line names; return the names."""
    names = []
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        found = re.match(r"# (\w+\.py)\n", code)
        assert found, f"no file is named by {code:.60}"
        (directory / found[1]).write_text(code)
        names.append(found[1])
    return names


def run_pytest(directory: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    """Run pytest in a directory, as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *words],
        cwd=directory,
        capture_output=True,
        timeout=PATIENCE * 2,
    )


# What is documented.


def test_examples_of_the_guide_pass_under_pytest(tmp_path: Path) -> None:
    """Each example of the guide is a test that passes, with pytest-twisted where it awaits."""
    names = write_examples(doc_page("testing.md"), tmp_path)
    # pytest-twisted runs the reactor, and so does trial's TestCase.
    (tmp_path / "test_shop_trial.py").unlink()
    done = run_pytest(tmp_path, "-rA")
    assert done.returncode == 0, done.stdout.decode()
    for name in names:
        if name.startswith("test_") and name != "test_shop_trial.py":
            assert f"PASSED {name}" in done.stdout.decode(), name


def test_examples_of_the_guide_pass_without_pytest_twisted(tmp_path: Path) -> None:
    """The fixture needs nothing but pytest; and pytest runs what trial runs."""
    write_examples(doc_page("testing.md"), tmp_path)
    (tmp_path / "test_shop_async.py").unlink()
    done = run_pytest(tmp_path, "-p", "no:twisted")
    assert done.returncode == 0, done.stdout.decode()


def test_examples_of_the_guide_pass_under_trial(tmp_path: Path) -> None:
    """Trial runs the mixin's examples, in both of its test cases, and finds its reactor clean."""
    write_examples(doc_page("testing.md"), tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "twisted.trial", "test_shop_trial"],
        cwd=tmp_path,
        capture_output=True,
        timeout=PATIENCE * 2,
    )
    assert done.returncode == 0, done.stdout.decode()
    assert b"Ran 3 tests" in done.stdout


def test_pytest_of_others_is_left_alone(tmp_path: Path) -> None:
    """Where the fixture is not used, pytest imports neither Twisted nor anything of ours that costs time."""
    (tmp_path / "test_it.py").write_text(
        "import json, pathlib, sys\n"
        "def test_it():\n"
        "    pathlib.Path('modules.json').write_text(json.dumps(sorted(sys.modules)))\n"
    )
    done = run_pytest(tmp_path, "-p", "no:twisted")
    assert done.returncode == 0, done.stdout.decode()
    modules = json.loads((tmp_path / "modules.json").read_text())
    ours = [name for name in modules if name.partition(".")[0] in ("gearman_twisted", "twisted", "zope")]
    light = ["gearman_twisted", "gearman_twisted.package", "gearman_twisted.testing"]
    assert ours == [*light, "gearman_twisted.testing.pytest_plugin"]


def test_fixture_can_be_left_out(tmp_path: Path) -> None:
    """``-p no:gearman`` has pytest not know of the fixture."""
    (tmp_path / "test_it.py").write_text("def test_it(gearman_farm):\n    pass\n")
    assert run_pytest(tmp_path).returncode == 0
    done = run_pytest(tmp_path, "-p", "no:gearman")
    assert done.returncode == 1
    assert b"fixture 'gearman_farm' not found" in done.stdout


def test_it_brings_no_reactor(tmp_path: Path) -> None:
    """A farm works from beginning to end without a reactor ever being installed."""
    code = (
        "import sys\n"
        "from gearman_twisted.testing import MemoryFarm\n"
        "farm = MemoryFarm()\n"
        "farm.worker({'reverse': lambda job: job.workload[::-1]})\n"
        "assert farm.result(farm.client().submit('reverse', b'abc')) == b'cba'\n"
        "farm.server.restart()\n"
        "farm.close()\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr.decode()


class MixinTests(GearmanTestMixin, unittest.TestCase):
    """The mixin works with the standard library's test case."""

    def make_farm(self) -> MemoryFarm:
        return MemoryFarm(start=1000.0)

    def test_the_farm_is_the_one_that_was_made(self) -> None:
        self.assertEqual(self.farm.clock.seconds(), 1000.0)
        self.farm.worker({"reverse": reverse})
        self.assertEqual(self.farm.result(self.farm.client().submit("reverse", b"abc")), b"cba")


@pytest_twisted.ensureDeferred
async def test_driven_farm_leaves_nothing_in_the_reactor(
    gearman_farm: MemoryFarm, no_calls_left: None
) -> None:
    """What the reactor has to do for the farm is gone when the farm is closed."""
    gearman_farm.worker({"reverse": reverse})
    client = gearman_farm.client()
    assert await client.submit("reverse", b"abc") == b"cba"
    client.submit("reverse", b"abc")  # and nobody waits for it
    gearman_farm.close()
    gearman_farm.close()


@pytest_twisted.ensureDeferred
async def test_time_can_be_awaited(gearman_farm: MemoryFarm) -> None:
    """A test that a reactor runs awaits that time passes; what would wait within a turn is refused."""
    done: list[bytes] = []
    gearman_farm.worker({"remember": lambda job: done.append(job.workload)})
    await gearman_farm.client().submit_at("remember", b"a", 60)
    with pytest.raises(RuntimeError, match="await what clients return"):
        gearman_farm.advance(60)
    with pytest.raises(RuntimeError, match="await what clients return"):
        gearman_farm.result(Deferred[None]())
    await gearman_farm.advanced(59)
    assert done == []
    await gearman_farm.advanced(1)
    assert done == [b"a"]
    # Nothing is in the middle of a turn now.
    assert gearman_farm.result(gearman_farm.client().echo(b"1")) == b"1"


def test_time_cannot_be_awaited_without_a_reactor() -> None:
    """The error says what to do instead."""
    with pytest.raises(RuntimeError, match="use advance"):
        MemoryFarm().advanced(1)


# Waiting.


def test_nothing_moves_by_itself(gearman_farm: MemoryFarm) -> None:
    """A call is answered by flush, and not before."""
    gearman_farm.worker({"reverse": reverse})
    got: list[bytes] = []
    gearman_farm.client().submit("reverse", b"abc").addCallback(got.append)
    assert got == []
    gearman_farm.flush()
    assert got == [b"cba"]


def test_result_of_what_never_ends_says_what_is_missing() -> None:
    """The error names the function, what became of its jobs, and the workers that there are."""
    farm = MemoryFarm()
    never: Deferred[bytes] = Deferred()
    farm.worker({"slow": lambda _job: never})
    job = farm.client().submit("slow")
    with pytest.raises(
        NotFinished, match="server-1 has 1 job for 'slow', 1 of them running, and 1 worker for it"
    ):
        farm.result(job)
    # It was not lost by that.
    never.callback(b"at last")
    assert farm.result(job) == b"at last"
    farm.clock.callLater(5, lambda: None)
    with pytest.raises(NotFinished, match="no server has a job; the next thing is due in 5 s"):
        farm.result(Deferred[None]())
    farm.server.stop()
    with pytest.raises(NotFinished, match="server-1 is not running"):
        farm.result(Deferred[None]())


def test_result_passes_no_more_time_than_needed() -> None:
    """With within, the clock stands where the result came."""
    farm = MemoryFarm()
    done: Deferred[str] = Deferred()
    farm.clock.callLater(3, done.callback, "three")
    farm.clock.callLater(4, lambda: None)
    with pytest.raises(NotFinished):
        farm.result(done, within=2.9)
    assert farm.result(done, within=100) == "three"
    assert farm.clock.seconds() == 3


def test_failure_can_be_asked_for_after_it_was_waited_for_in_vain() -> None:
    """A Deferred that result has given up still fails for the next one who asks."""
    farm = MemoryFarm()
    late: Deferred[bytes] = Deferred()
    with pytest.raises(NotFinished):
        farm.result(late)
    late.errback(JobFailed("late"))
    with pytest.raises(JobFailed, match="late"):
        farm.result(late)


def test_time_stops_where_something_is_due(gearman_farm: MemoryFarm) -> None:
    """What is due first happens first, at its own time, with all that comes of it."""
    seen: list[tuple[float, bytes]] = []
    clock = gearman_farm.clock

    async def remember(job: Job) -> None:
        seen.append((clock.seconds(), job.workload))
        await client.submit_at("remember", job.workload + b"+", clock.seconds() + 10) if len(
            job.workload
        ) < 3 else None

    client = gearman_farm.client()
    gearman_farm.worker({"remember": remember})
    gearman_farm.result(client.submit_at("remember", b"b", 7))
    gearman_farm.result(client.submit_at("remember", b"a", 5))
    gearman_farm.advance(1000)
    assert seen == [(5, b"a"), (7, b"b"), (15, b"a+"), (17, b"b+"), (25, b"a++"), (27, b"b++")]
    assert clock.seconds() == 1000
    with pytest.raises(ValueError, match="time does not go back"):
        gearman_farm.advance(-1)


def test_what_never_rests_is_noticed() -> None:
    """A job that is tried again at once, for ever, is an error rather than a test that hangs."""

    def again(_job: Job) -> bytes:
        raise RetryLater(0)

    farm = MemoryFarm()
    farm.worker({"again": again})
    with pytest.raises(EndlessLoop, match="'again'"):
        farm.result(farm.client().submit("again"))


def test_two_farms_do_the_same() -> None:
    """The same calls bring about the same events, down to the handles."""

    def history() -> list[object]:
        farm = MemoryFarm()
        told: list[object] = []
        second = farm.add_server()
        farm.worker({"reverse": reverse}, concurrency=2)
        farm.worker({"reverse": reverse, "other": reverse})
        pool = farm.pool(choice="round_robin")
        for number in range(20):
            pool.submit(
                "reverse" if number % 3 else "other", b"%d" % number, on_created=told.append
            ).addCallbacks(told.append, lambda failure: told.append(repr(failure.value)))
        farm.flush()
        second.stop()
        farm.lose_connections()
        pool.submit("reverse", b"last").addBoth(told.append)
        farm.advance(60)
        return told

    assert history() == history()


# The network.


def test_lost_connections_come_back(gearman_farm: MemoryFarm) -> None:
    """Calls that wait fail, the job goes to a worker again, and after a second all is as before."""
    waiting: list[Deferred[bytes]] = []

    def slow(_job: Job) -> Deferred[bytes]:
        waiting.append(Deferred())
        return waiting[-1]

    gearman_farm.worker({"slow": slow}, concurrency=2)
    client = gearman_farm.client()
    handle = gearman_farm.result(client.submit_background("slow"))
    gearman_farm.lose_connections()
    assert gearman_farm.server.functions["slow"].running == 0
    gearman_farm.advance(1)
    assert len(waiting) == 2
    waiting[0].callback(b"dropped")
    assert gearman_farm.result(client.status(handle)) == JobStatus(True, True, 0, 0)
    waiting[1].callback(b"")
    gearman_farm.flush()
    assert gearman_farm.server.stored_jobs == []


@pytest.mark.parametrize("store", [DurableMemoryStore, MemoryStore])
def test_restart_keeps_what_the_store_keeps(store: Callable[[], Any]) -> None:
    """Background jobs survive a restart where the store is durable, and no handle is given twice."""
    farm = MemoryFarm(store())
    client = farm.client()
    first = farm.result(client.submit_background("later", b"1"))
    farm.server.restart()
    second = farm.result(client.submit_background("later", b"2"))
    assert first != second
    is_known = farm.result(client.status(first)).is_known
    assert is_known == (store is DurableMemoryStore)
    farm.server.stop()
    farm.server.start()
    assert farm.result(client.submit_background("later", b"3")) not in (first, second)


def test_stored_jobs_of_another_store_cannot_be_looked_into() -> None:
    """The error says which store is needed."""
    farm = MemoryFarm(MemoryStore())
    with pytest.raises(TypeError, match="only a DurableMemoryStore can be looked into, not MemoryStore"):
        _ = farm.server.stored_jobs


def test_worker_drains_in_memory(gearman_farm: MemoryFarm) -> None:
    """A worker that stops ends the job that it has, and disconnects."""
    done: Deferred[bytes] = Deferred()
    worker = gearman_farm.worker({"slow": lambda _job: done})
    job = gearman_farm.client().submit("slow")
    gearman_farm.flush()
    stopped = worker.stopService()
    with pytest.raises(NotFinished):
        gearman_farm.result(stopped)
    done.callback(b"in time")
    gearman_farm.result(stopped)
    assert gearman_farm.result(job) == b"in time"
    assert gearman_farm.server.functions["slow"].workers == 0


def test_many_jobs(gearman_farm: MemoryFarm) -> None:
    """Hundreds of jobs go through several workers, and come back in order."""
    for _ in range(3):
        gearman_farm.worker({"reverse": reverse})
    tasks = [Task("reverse", b"%04d" % number) for number in range(500)]
    results = gearman_farm.result(gather(gearman_farm.pool(), tasks))
    assert results == [(b"%04d" % number)[::-1] for number in range(500)]


def test_closed_client_and_stopped_server(gearman_farm: MemoryFarm) -> None:
    """Closing works from either side, and so do calls that come too late."""
    client = gearman_farm.client()
    gearman_farm.result(client.echo(b"1"))
    gearman_farm.result(client.close())
    with pytest.raises(NoServers):
        gearman_farm.result(client.echo(b"2"))
    other = gearman_farm.client()
    waiting = other.submit("nobody")
    gearman_farm.flush()
    gearman_farm.server.stop()
    gearman_farm.server.stop()
    with pytest.raises(ConnectionLost):
        gearman_farm.result(waiting)
    assert not gearman_farm.server.is_running


def test_attempt_to_connect_can_be_cancelled(gearman_farm: MemoryFarm) -> None:
    """A client that is closed before it was connected leaves no connection behind."""
    client = gearman_farm.client()
    client.echo(b"1").addErrback(lambda _failure: None)
    gearman_farm.result(client.close())
    assert gearman_farm.server.engine.snapshot().connections == []


def test_network_tells_refused_from_taken() -> None:
    """A place where nothing listens refuses, and one that is taken cannot be taken again."""
    network = Network(lambda: None)
    factory = Factory.forProtocol(Protocol)
    refused = network.client_endpoint("here").connect(factory)
    assert network.turn()
    failures: list[Any] = []
    refused.addErrback(failures.append)
    assert failures[0].check(error.ConnectionRefusedError)
    ports: list[Any] = []
    network.server_endpoint("here").listen(factory).addCallback(ports.append)
    network.server_endpoint("here").listen(factory).addErrback(failures.append)
    assert failures[1].check(error.CannotListenError)
    ports[0].stopListening()
    assert not network.is_listening("here")


class Recorder(Protocol):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    def connectionMade(self) -> None:
        self.seen.append("made")

    def dataReceived(self, data: bytes) -> None:
        self.seen.append(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.seen.append(reason.type)


def connected() -> tuple[Network, Recorder, Recorder]:
    """A network, and both ends of a connection."""
    network = Network(lambda: None)
    ends: list[Recorder] = []

    class Recorders(Factory):
        def buildProtocol(self, addr: object) -> Recorder:
            ends.append(Recorder())
            return ends[-1]

    network.server_endpoint("here").listen(Recorders())
    network.client_endpoint("here").connect(Recorders())
    network.turn()
    server, client = ends
    return network, server, client


def test_bytes_come_before_the_end() -> None:
    """What was written before the connection was closed is delivered, and then its end, cleanly."""
    network, server, client = connected()
    assert client.transport is not None
    client.transport.write(b"a")
    client.transport.writeSequence([b"b", b"c"])
    client.transport.loseConnection()
    client.transport.write(b"too late")
    while network.turn():
        pass
    assert server.seen == ["made", b"abc", error.ConnectionDone]
    assert client.seen == ["made", error.ConnectionDone]


def test_abort_drops_what_is_on_its_way() -> None:
    """An aborted connection is lost at once, at both ends, and not cleanly."""
    network, server, client = connected()
    transport: Any = client.transport
    transport.write(b"a")
    transport.abortConnection()
    while network.turn():
        pass
    assert server.seen == ["made", error.ConnectionLost]
    assert client.seen == ["made", error.ConnectionAborted]


def test_paused_end_is_told_later() -> None:
    """An end that does not read is told of nothing until it does."""
    network, server, client = connected()
    transport: Any = server.transport
    transport.pauseProducing()
    assert client.transport is not None
    client.transport.write(b"a")
    assert not network.turn()
    transport.resumeProducing()
    assert network.turn()
    assert server.seen == ["made", b"a"]


# Threads and processes.


@pytest.mark.parametrize("wrap", [in_thread, in_process])
def test_functions_for_threads_and_processes_run_inline(
    gearman_farm: MemoryFarm, wrap: Callable[[Any], Any]
) -> None:
    """They run in the test's own thread, and send on their way what they would have sent."""
    worker = GearmanWorker(gearman_farm.server.endpoint, reactor=gearman_farm.clock)
    worker.register("talk", wrap(talk))
    worker.startService()
    told: list[object] = []
    job = gearman_farm.client().submit(
        "talk", b"abc", on_data=told.append, on_status=lambda *numbers: told.append(numbers)
    )
    assert gearman_farm.result(job) == b"%d" % os.getpid()
    assert told == [b"abc", (1, 2)]
    with pytest.raises(JobFailed):
        gearman_farm.result(gearman_farm.client().submit("talk"))


def talk(job: Job) -> bytes:
    """A function that sends all it can."""
    if not job.workload:
        raise JobFailed("nothing to say")
    job.send_data(job.workload)
    job.send_status(1, 2)
    return b"%d" % os.getpid()


def test_worker_of_marked_functions(gearman_farm: MemoryFarm) -> None:
    """The farm's worker takes what is marked as ``GearmanWorker`` does, and refuses the rest at once."""

    @function
    def twice(job: Job) -> bytes:
        return job.workload * 2

    gearman_farm.worker(twice)
    assert gearman_farm.result(gearman_farm.client().submit("twice", b"x")) == b"xx"
    with pytest.raises(ConfigError, match="has no function that is marked"):
        gearman_farm.worker(len)
