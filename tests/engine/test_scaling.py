"""Rule 5, no scan: what is done per job costs the same, however much there is of everything else.

Counted in opcodes of Python rather than in seconds, so that the result is the same on every machine; a loop
in C hides from it, but not one in Python.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.engine_bench import CLIENT, FIRST_OF_CROWD, WORKER, Bench, opcodes

P = PacketType

# What branches may differ by: a dictionary entry that is there already, a lane that becomes empty. A scan of
# the smallest crowd below costs thousands.
FEW = 300


def queued_jobs(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.submit(unique=b"%d" % number)


def jobs_of_all_priorities(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.submit(type_=(P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH_BG, P.SUBMIT_JOB_LOW)[number % 3])


def scheduled_jobs(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.send(CLIENT, P.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % (2_000_000 + number), b"")


def running_jobs(bench: Bench, count: int) -> None:
    bench.send(WORKER, P.CAN_DO_TIMEOUT, b"f", b"60000")
    for _ in range(count):
        bench.submit()
        bench.grab()


def functions_of_the_worker(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.send(WORKER, P.CAN_DO, b"f%d" % number)
    # The first sleep lists it with each of them, once; see wakeups.
    bench.send(WORKER, P.PRE_SLEEP)


def functions_with_jobs(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.submit(b"f%d" % number)


def jobs_of_functions_of_nobody(bench: Bench, count: int) -> None:
    functions_of_the_worker(bench, count)
    for number in range(count):
        bench.submit(b"nobody's%d" % number)


def ready_functions_of_others(bench: Bench, count: int) -> None:
    bench.engine.connect(FIRST_OF_CROWD, "-", bench.now)
    for number in range(count):
        bench.send(FIRST_OF_CROWD, P.CAN_DO, b"other's%d" % number)
        bench.submit(b"other's%d" % number)
    functions_of_the_worker(bench, count)


def sleeping_workers(bench: Bench, count: int) -> None:
    for number in range(FIRST_OF_CROWD, FIRST_OF_CROWD + count):
        bench.engine.connect(number, "-", bench.now)
        bench.send(number, P.CAN_DO, b"f")
        bench.send(number, P.PRE_SLEEP)


def sleepers_of_many_functions(bench: Bench, count: int) -> None:
    for number in range(FIRST_OF_CROWD, FIRST_OF_CROWD + 20):
        bench.engine.connect(number, "-", bench.now)
        for function in range(count // 20):
            bench.send(number, P.CAN_DO, b"f%d" % function)
        bench.send(number, P.CAN_DO, b"f")
        bench.send(number, P.PRE_SLEEP)


def clients_of_one_job(bench: Bench, count: int) -> None:
    for number in range(FIRST_OF_CROWD, FIRST_OF_CROWD + count):
        bench.engine.connect(number, "-", bench.now)
        bench.send(number, P.SUBMIT_JOB, b"g", b"one", b"")


def workers_on_their_way(bench: Bench, count: int) -> None:
    sleeping_workers(bench, count)
    for _ in range(count):
        bench.submit(b"f")


@pytest.mark.parametrize(
    ("crowd", "count"),
    [
        (queued_jobs, 10_000),
        (jobs_of_all_priorities, 9_000),
        (scheduled_jobs, 5_000),
        (running_jobs, 5_000),
        (functions_of_the_worker, 5_000),
        (functions_with_jobs, 5_000),
        (jobs_of_functions_of_nobody, 5_000),
        (ready_functions_of_others, 5_000),
        (sleeping_workers, 2_000),
        (sleepers_of_many_functions, 5_000),
        (clients_of_one_job, 2_000),
        (workers_on_their_way, 2_000),
    ],
)
def test_job_costs_the_same_in_a_crowd(crowd: Callable[[Bench, int], None], count: int) -> None:
    """No step of a job's life costs more with thousands of other jobs, functions or connections."""
    alone, crowded = Bench(), Bench()
    crowd(alone, 20)
    crowd(crowded, count)
    few, many = alone.costs_of_a_job(), crowded.costs_of_a_job()
    assert {name: cost for name, cost in many.items() if cost > few[name] + FEW} == {}
    assert min(few.values()) > 0


@pytest.mark.parametrize("count", [20, 2_000])
def test_worker_of_many_functions_sleeps_and_wakes_cheaply(count: int) -> None:
    """Once asleep, a worker pays for what woke it, and not for all its functions again."""
    bench = Bench()
    functions_of_the_worker(bench, count)
    bench.send(WORKER, P.PRE_SLEEP)

    def turn() -> None:
        bench.submit(b"f1")
        bench.send(WORKER, P.WORK_COMPLETE, bench.grab(), b"")
        bench.send(WORKER, P.PRE_SLEEP)

    turn()
    assert opcodes(turn) < 2_500


def test_worker_gives_a_function_up_at_the_cost_of_its_jobs() -> None:
    """The jobs that a worker runs of other functions cost nothing when it gives one up."""
    costs = []
    for count in (20, 5_000):
        bench = Bench()
        running_jobs(bench, count)

        def turn(bench: Bench = bench) -> None:
            bench.send(WORKER, P.CAN_DO, b"g")
            bench.submit(b"g")
            bench.grab()
            bench.send(WORKER, P.CANT_DO, b"g")

        turn()
        costs.append(opcodes(turn))
    assert costs[1] < costs[0] + FEW


def test_cancelling_many_costs_as_much_each_as_cancelling_few() -> None:
    """The dead entries are cleared out so seldom that it costs each job a constant."""
    costs: list[float] = []
    for count in (200, 5_000):
        bench = Bench()
        handles = [bench.submit() for _ in range(count)]

        def cancel_all(bench: Bench = bench, handles: list[bytes] = handles) -> None:
            for handle in handles:
                bench.engine.operations.cancel(handle)

        costs.append(opcodes(cancel_all) / count)
    assert costs[1] < costs[0] + 100


def test_disconnect_costs_only_what_the_peer_had() -> None:
    """A peer with one job leaves as cheaply among ten thousand jobs as alone."""
    costs: list[int] = []
    for count in (20, 10_000):
        bench = Bench()
        queued_jobs(bench, count)
        bench.engine.connect(FIRST_OF_CROWD, "-", bench.now)
        bench.send(FIRST_OF_CROWD, P.SUBMIT_JOB, b"f", b"", b"")
        costs.append(opcodes(partial(bench.engine.disconnect, FIRST_OF_CROWD, bench.now)))
    assert costs[1] < costs[0] + FEW


def functions_ever_named(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.send(CLIENT, P.TEXT_LINE, b"create function f%d" % number)


def recurring_jobs(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.send(CLIENT, P.SUBMIT_JOB_SCHED, b"g%d" % number, b"u", b"0", b"0", b"1", b"1", b"*", b"")


COMMANDS = (b"show scheduled", b"drop function nobody's", b"create function g", b"cancel unique f u")
CROWDS_OF_COMMANDS: list[tuple[Callable[[Bench, int], None], int]] = [
    (queued_jobs, 5_000),
    (running_jobs, 2_000),
    (functions_ever_named, 5_000),
    (functions_with_jobs, 5_000),
    (recurring_jobs, 500),
]


@pytest.mark.parametrize(
    ("crowd", "count", "line"),
    [
        (crowd, count, line)
        for crowd, count in CROWDS_OF_COMMANDS
        for line in COMMANDS
        if (crowd, line) != (recurring_jobs, b"show scheduled")  # which lists them
    ],
)
def test_command_costs_what_it_answers(crowd: Callable[[Bench, int], None], count: int, line: bytes) -> None:
    """A command that lists or changes little costs the same, however much else there is."""
    costs = []
    for size in (20, count):
        bench = Bench()
        bench.send(CLIENT, P.TEXT_LINE, b"create function nobody's")
        bench.send(CLIENT, P.SUBMIT_JOB_EPOCH, b"later", b"", b"2000000", b"")
        crowd(bench, size)
        costs.append(opcodes(partial(bench.send, CLIENT, P.TEXT_LINE, line)))
    assert costs[1] < costs[0] + FEW


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("type_", [P.WORK_STATUS, P.WORK_DATA, P.WORK_EXCEPTION])
def test_client_that_submitted_one_job_often_costs_what_another_costs(type_: PacketType, size: int) -> None:
    """A client gets a packet for each of its submissions of one unique, without a step for each."""
    costs = []
    args = (b"1", b"2") if type_ is P.WORK_STATUS else (b"x" * size,)
    for times in (2, 5_000):
        bench = Bench()
        for _ in range(times):
            bench.submit(unique=b"u")
        handle = bench.grab()
        written: list[bytes] = []

        def report(bench: Bench = bench, handle: bytes = handle, written: list[bytes] = written) -> None:
            out = bench.engine.receive(WORKER, [Packet(type_, [handle, *args])], bench.now)
            written += out.writes[CLIENT]

        costs.append(opcodes(report))
        sent = P.WORK_FAIL if type_ is P.WORK_EXCEPTION else type_
        assert b"".join(written).count(b"\0RES\0\0\0" + bytes([sent])) == times
    assert costs[1] < costs[0] + FEW


def jobs_with_one_unique(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.submit(b"f%d" % number, unique=b"u")


def offloaded_jobs(bench: Bench, count: int) -> None:
    bench.restart(EngineSettings(memory=0))
    for number in range(count):
        bench.restore(b"f%d" % number, b"%d" % number)
    bench.restore(b"f", b"u")


@pytest.mark.parametrize(
    ("crowd", "count"),
    [
        (functions_ever_named, 5_000),
        (functions_with_jobs, 5_000),
        (jobs_with_one_unique, 5_000),
        (recurring_jobs, 500),
        (offloaded_jobs, 5_000),
    ],
)
def test_status_costs_the_same_among_many_functions(crowd: Callable[[Bench, int], None], count: int) -> None:
    """Neither a handle nor a unique names a function, and none is asked in vain."""
    costs = []
    for size in (20, count):
        bench = Bench()
        crowd(bench, size)
        by_unique = opcodes(partial(bench.send, CLIENT, P.GET_STATUS_UNIQUE, b"u"))
        by_handle = opcodes(partial(bench.send, CLIENT, P.GET_STATUS, b"H:localhost:%d" % size))
        costs.append((by_unique, by_handle))
    (unique_alone, handle_alone), (unique_crowded, handle_crowded) = costs
    assert unique_crowded < unique_alone + FEW
    assert handle_crowded < handle_alone + FEW


# Memory.


def comings_and_goings(bench: Bench) -> Iterator[tuple[str, Callable[[], object]]]:
    """Things that peers may do for ever, after which nothing should be left."""
    engine, number = bench.engine, FIRST_OF_CROWD

    def abandon() -> None:
        engine.connect(number, "-", bench.now)
        for unique in (b"", b"u", b"-"):
            bench.send(number, P.SUBMIT_JOB, b"nobody's", unique, b"w")
        engine.disconnect(number, bench.now)

    def cancel_scheduled() -> None:
        created = bench.send(CLIENT, P.SUBMIT_JOB_EPOCH, b"nobody's", b"", b"2000000", b"")
        engine.operations.cancel(created[12:])

    def time_out_never() -> None:
        bench.send(WORKER, P.CAN_DO_TIMEOUT, b"f", b"3600000")
        bench.submit()
        bench.send(WORKER, P.WORK_COMPLETE, bench.grab(), b"")

    def wake_and_leave() -> None:
        engine.connect(number, "-", bench.now)
        for function in (b"f", b"g"):
            bench.send(number, P.CAN_DO, function)
        bench.send(number, P.PRE_SLEEP)
        bench.engine.operations.cancel(bench.submit(b"g"))
        engine.disconnect(number, bench.now)

    def sleep_and_wake() -> None:
        bench.send(WORKER, P.PRE_SLEEP)
        bench.submit()
        bench.send(WORKER, P.WORK_COMPLETE, bench.grab(), b"")

    def take_and_lose() -> None:
        engine.connect(number, "-", bench.now)
        bench.send(number, P.CAN_DO, b"g")
        bench.submit(b"g")
        handle = bench.send(number, P.GRAB_JOB)[12:].split(b"\0")[0]
        engine.disconnect(number, bench.now)
        engine.operations.cancel(handle)

    for action in (abandon, cancel_scheduled, time_out_never, wake_and_leave, sleep_and_wake, take_and_lose):
        yield action.__name__, action


@pytest.mark.parametrize("name", [name for name, _ in comings_and_goings(Bench())])
def test_what_is_over_takes_no_memory(name: str) -> None:
    """Thousands of jobs and peers that came and went leave no more than a few did."""
    bench = Bench()
    # One job is due before all others, so that what is cancelled does not surface by itself.
    bench.send(CLIENT, P.SUBMIT_JOB_EPOCH, b"first", b"", b"1500000", b"")
    action = dict(comings_and_goings(bench))[name]

    def do(times: int) -> int:
        for _ in range(times):
            action()
            # The rim asks after each call, and the engine drops what is over when it is asked.
            bench.engine.next_deadline()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = do(300)
        after = do(3_000)
    finally:
        tracemalloc.stop()
    assert after - before < 50_000
    assert bench.engine.snapshot().jobs == 1
