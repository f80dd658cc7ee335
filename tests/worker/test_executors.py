from __future__ import annotations

import os
import resource
import signal
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from gearman_twisted import GearmanClient, GearmanWorker, Job
from gearman_twisted.client import AdminClient
from gearman_twisted.errors import ConfigError, JobError, JobException, JobFailed
from gearman_twisted.worker.executor_child import DATA, RESULT, Frames, find_target, frame_head
from gearman_twisted.worker.executors import in_process, in_thread
from tests.kit import process_functions
from tests.kit.gearmand import Gearmand
from tests.kit.worker_rig import log_warnings

reactor: Any = global_reactor

logged = pytest.fixture(log_warnings)


class Pair:
    """A client and a worker of one server."""

    def __init__(self, address: str, **options: Any) -> None:
        self.client = GearmanClient(address)
        self.worker = GearmanWorker(address, **options)

    async def __aenter__(self) -> Pair:
        self.worker.startService()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.worker.stopService()
        await self.client.close()


def is_running(pid: int) -> bool:
    """Whether there is such a process, be it dead and not yet asked for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest_twisted.ensureDeferred
async def test_thread_runs_and_tells(gearmand: Gearmand, no_calls_left: None) -> None:
    """A function in a thread sends from there, in order; its result and its errors come as any."""

    def work(job: Job) -> bytes | None:
        assert threading.current_thread() is not threading.main_thread()
        assert job.is_connected
        job.send_status(1, 2)
        for number in range(100):
            job.send_data(b"%d " % number)
        job.send_warning(b"w")
        if job.workload == b"raise":
            raise ValueError("no")
        return None

    told: list[object] = []
    async with Pair(gearmand.address) as pair:
        pair.worker.register("work", in_thread(work))
        done = pair.client.submit(
            "work", on_status=lambda *numbers: told.append(numbers), on_warning=told.append
        )
        assert await done == b"".join(b"%d " % number for number in range(100))
        assert told == [(1, 2), b"w"]
        with pytest.raises(JobException) as caught:
            await pair.client.submit("work", b"raise")
        assert caught.value.data == b"ValueError: no"


@pytest_twisted.ensureDeferred
async def test_threads_run_side_by_side(gearmand: Gearmand, no_calls_left: None) -> None:
    """As many jobs run as there are slots, and threads are used again."""
    barrier = threading.Barrier(3, timeout=30)
    names: set[str] = set()

    def meet(_job: Job) -> bytes:
        barrier.wait()
        names.add(threading.current_thread().name)
        return b"met"

    async with Pair(gearmand.address, concurrency=3) as pair:
        pair.worker.register("meet", in_thread(meet))
        for _ in range(3):
            assert await gatherResults([pair.client.submit("meet") for _ in range(3)]) == [b"met"] * 3


@pytest_twisted.ensureDeferred
async def test_thread_that_overruns_keeps_its_slot(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """Its job fails in time; the next one starts when the thread has ended."""
    gate = threading.Event()
    order: list[str] = []

    def wait(job: Job) -> None:
        if job.workload:
            gate.wait()
            order.append("first ended")
        else:
            order.append("second")

    async with Pair(gearmand.address) as pair:
        pair.worker.register("wait", in_thread(wait), timeout=0.05)
        with pytest.raises(JobException) as caught:
            await pair.client.submit("wait", b"x")
        assert caught.value.data == b"JobTimeout: not finished within 0.05 seconds"
        second = pair.client.submit("wait")
        await pair.client.echo(b"")
        gate.set()
        await second
    assert order == ["first ended", "second"]
    assert len(logged) == 1


@pytest_twisted.ensureDeferred
async def test_process_runs_and_tells(gearmand: Gearmand, no_calls_left: None) -> None:
    """A function in a process has a job like any other."""
    told: list[object] = []
    async with Pair(gearmand.address) as pair:
        pair.worker.register("tell", in_process(process_functions.tell, processes=1))
        done = pair.client.submit(
            "tell", on_status=lambda *numbers: told.append(numbers), on_warning=told.append
        )
        assert await done == b"data tell H: 1"
        assert told == [(1, 2), b"warning"]


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("raise", JobException, "ValueError: no \\udcff"),
        ("exit", JobException, "SystemExit: 3"),
        ("fail", JobFailed, "the job failed"),
        ("exception", JobException, "\ufffd\0data"),
        ("die", JobException, "ProcessDied: the process that ran the job ended with status 7"),
        ("kill", JobException, "ProcessDied: the process that ran the job was ended by signal 9"),
        ("text", JobException, "TypeError: a worker function returns bytes or None, not str"),
        ("lock", JobException, "TypeError: a worker function returns bytes or None, not lock"),
        ("large", JobException, "ResultTooLarge: 961 bytes are more than the 960 that the server takes"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_process_that_fails(
    gearmand: Gearmand,
    logged: list[LogEvent],
    what: str,
    error: type[JobError],
    text: str,
) -> None:
    """Whatever becomes of its process, the client is told, it is logged once, and the next job runs."""
    async with Pair(gearmand.address, max_packet_bytes=1024) as pair:
        pair.worker.register("f", in_process("tests.kit.process_functions:misbehave", processes=1))
        with pytest.raises(error) as caught:
            await pair.client.submit("f", what.encode())
        assert text in str(caught.value)
        assert await pair.client.submit("f", b"none") == b""
    assert len(logged) == (what != "fail")


@pytest_twisted.ensureDeferred
async def test_function_that_cannot_be_imported_fails_its_jobs(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """What its module raises is told to the client."""
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process("tests.kit.broken_module:nothing", processes=1))
        for _ in range(2):
            with pytest.raises(JobException, match="the function cannot be imported: ZeroDivisionError"):
                await pair.client.submit("f")
    assert len(logged) == 2


@pytest_twisted.ensureDeferred
async def test_process_that_cannot_be_started_fails_its_job(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """With no file descriptor left the client hears why, and the worker goes on when there are some."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process(process_functions.reverse, processes=1))
        await pair.client.echo(b"")
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(JobException, match=r"could not be started: .*Too many open files"):
                await pair.client.submit("f", b"ab")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert await pair.client.submit("f", b"ab") == b"ba"
    assert len(logged) == 1


@pytest_twisted.ensureDeferred
async def test_job_of_a_dead_process_may_be_requeued(
    gearmand: Gearmand, no_calls_left: None, tmp_path: Path
) -> None:
    """If that is wanted, a job whose process died goes back to its server and is done at the second try."""
    async with Pair(gearmand.address) as pair:
        executor = in_process(process_functions.die_first, processes=1, on_death="requeue")
        pair.worker.register("f", executor)
        assert await pair.client.submit("f", bytes(tmp_path / "mark")) == b"second"


@pytest_twisted.ensureDeferred
async def test_process_asks_for_another_try(gearmand: Gearmand, no_calls_left: None) -> None:
    """RetryLater works from a process, which is told which attempt it is."""
    async with Pair(gearmand.address) as pair:
        pair.worker.register("f", in_process(process_functions.retry, processes=1))
        assert await pair.client.submit("f") == b"3"


@pytest_twisted.ensureDeferred
async def test_processes_are_used_again_and_replaced(gearmand: Gearmand, no_calls_left: None) -> None:
    """One process does job after job, as many as it may; one that died idle is replaced."""
    async with Pair(gearmand.address) as pair:
        pair.worker.register("kept", in_process(process_functions.pid, processes=1))
        pair.worker.register("used up", in_process(process_functions.pid, processes=1, max_jobs=2))
        kept = [int(await pair.client.submit("kept")) for _ in range(3)]
        assert len(set(kept)) == 1
        used = [int(await pair.client.submit("used up")) for _ in range(5)]
        assert [used.count(pid) for pid in dict.fromkeys(used)] == [2, 2, 1]
        os.kill(kept[0], signal.SIGKILL)
        while is_running(kept[0]):
            await deferLater(reactor, 0.01)
        assert int(await pair.client.submit("kept")) != kept[0]
    assert [pid for pid in {*kept, *used} if is_running(pid)] == []


@pytest_twisted.ensureDeferred
async def test_no_more_jobs_are_taken_than_processes(
    gearmand: Gearmand, no_calls_left: None, tmp_path: Path
) -> None:
    """With both processes at work a third job stays with the server, although the worker has slots."""
    gate = tmp_path / "gate"
    started: list[bytes] = []
    async with Pair(gearmand.address, concurrency=5) as pair, AdminClient(gearmand.address) as admin:
        pair.worker.register("wait", in_process(process_functions.wait, processes=2))
        jobs = [pair.client.submit("wait", bytes(gate), on_data=started.append) for _ in range(3)]
        while len(started) < 2:
            await deferLater(reactor, 0.01)
        (status,) = await admin.status()
        assert (status.total, status.running) == (3, 2)
        gate.touch()
        await gatherResults(jobs)
    assert (len(started), len({*started})) == (3, 2)


@pytest_twisted.ensureDeferred
async def test_process_that_takes_too_long_is_killed(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """At the timeout the job fails, the process is gone, and another one does the next job."""
    pids: list[bytes] = []
    async with Pair(gearmand.address) as pair:
        pair.worker.register("wait", in_process(process_functions.wait, processes=1), timeout=1)
        for _ in range(2):
            with pytest.raises(JobException, match="JobTimeout: not finished within 1 seconds"):
                await pair.client.submit("wait", on_data=pids.append)
    assert len({*pids}) == 2
    assert [pid for pid in pids if is_running(int(pid))] == []
    assert len(logged) == 2


@pytest_twisted.ensureDeferred
async def test_stop_ends_processes_at_work(
    gearmand: Gearmand, no_calls_left: None, logged: list[LogEvent]
) -> None:
    """After the drain timeout processes are killed, and the server has the job again."""
    started: Deferred[bytes] = Deferred()
    async with GearmanClient(gearmand.address) as client:
        worker = GearmanWorker(gearmand.address, drain_timeout=0.05)
        worker.register("wait", in_process(process_functions.wait, processes=1))
        worker.startService()
        job = client.submit("wait", on_data=started.callback)
        job.addErrback(lambda failure: failure.trap(CancelledError))
        pid = int(await started)
        await worker.stopService()
        assert not is_running(pid)
        async with AdminClient(gearmand.address) as admin:
            while [(status.total, status.running) for status in await admin.status()] != [(1, 0)]:
                await deferLater(reactor, 0.01)
        job.cancel()


@pytest_twisted.ensureDeferred
async def test_output_of_processes_is_logged(gearmand: Gearmand, no_calls_left: None) -> None:
    """What a function prints is in the log, each line one."""
    lines: list[str] = []

    @implementer(ILogObserver)
    class Observer:
        def __call__(self, event: LogEvent) -> None:
            lines.append(str(formatEvent(event)))

    observer = Observer()
    globalLogPublisher.addObserver(observer)
    try:
        async with Pair(gearmand.address) as pair:
            pair.worker.register("f", in_process(process_functions.misbehave, processes=1))
            with pytest.raises(JobException, match="ended with status 0"):
                await pair.client.submit("f", b"print")
    finally:
        globalLogPublisher.removeObserver(observer)
    printed = [line for line in lines if "misbehave wrote: " in line]
    assert [line.split()[2] for line in printed] == ["printed", "no"]


@pytest.mark.parametrize("name", ["thread", "process"])
@pytest_twisted.ensureDeferred
async def test_large_results(gearmand: Gearmand, no_calls_left: None, name: str) -> None:
    """100 MiB go to a function and come back."""
    executors = {
        "thread": lambda: in_thread(process_functions.reverse),
        "process": lambda: in_process(process_functions.reverse, processes=1),
    }
    workload = b"ab" * (50 << 20)
    async with Pair(gearmand.address) as pair:
        pair.worker.register("reverse", executors[name]())
        assert await pair.client.submit("reverse", workload) == workload[::-1]


def local_function() -> Any:
    """A function that no other process can find."""

    def inner(_job: Job) -> bytes:
        return b""

    return inner


async def coroutine_function(_job: Job) -> bytes:
    return b""


def not_itself(_job: Job) -> bytes:
    return b""


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda _job: b"", "at the top of a module"),
        (local_function(), "at the top of a module"),
        (coroutine_function, "an async one is registered as it is"),
        ("module", "'package.module:function'"),
        (7, "takes a function, not int"),
    ],
)
def test_process_needs_a_function_with_a_name(function: Any, text: str) -> None:
    """What another process could not import is refused at once."""
    with pytest.raises(ConfigError, match=text):
        in_process(function)


def test_process_does_not_take_the_name_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose name stands for something else, as under a decorator, is refused."""
    original = not_itself
    monkeypatch.setitem(globals(), "not_itself", coroutine_function)
    with pytest.raises(ConfigError, match="not_itself"):
        in_process(original)
    script = local_function()
    script.__module__ = "__main__"
    with pytest.raises(ConfigError, match="__main__"):
        in_process(script)


def test_thread_takes_no_coroutine_function() -> None:
    """Coroutines run in the reactor's thread."""
    wrong: Any = coroutine_function
    with pytest.raises(ConfigError, match="in_thread takes an ordinary function"):
        in_thread(wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"processes": 0},
        {"processes": 1.5},
        {"processes": "4"},
        {"max_jobs": 0},
        {"max_jobs": 1.5},
        {"on_death": "cry"},
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any]) -> None:
    """A setting that makes no sense is refused."""
    with pytest.raises(ConfigError, match=next(iter(options))):
        in_process(process_functions.pid, **options)


def test_frames_may_be_split_anywhere() -> None:
    """Wherever reads end, the frames are the same."""
    frames = [(DATA, b""), (RESULT, b"\0" * 20), (DATA, b"x")]
    stream = b"".join(frame_head(kind, len(content)) + content for kind, content in frames)
    for cut in range(len(stream) + 1):
        reader = Frames()
        assert reader.feed(stream[:cut]) + reader.feed(stream[cut:]) == frames
    reader = Frames()
    assert [frame for byte in stream for frame in reader.feed(struct.pack("B", byte))] == frames


def test_target_is_found_by_its_path() -> None:
    """A function may be an attribute of something in a module."""
    assert find_target("tests.worker.test_executors:Pair.__aenter__") is Pair.__aenter__
