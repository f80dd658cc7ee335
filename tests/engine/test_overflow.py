"""Queues that are longer than the memory allows: jobs that are in the store only, and are loaded in time."""

from __future__ import annotations

import random

import pytest

from gearman_twisted.engine import lane
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.constants import PacketType
from tests.kit.engine_farm import NOON, Farm, Peer, packet

P = PacketType


def a_farm(memory: int = 100) -> Farm:
    """A farm whose memory takes so many bytes of workloads."""
    return Farm(durable=True, settings=EngineSettings(handle_prefix=b"H:farm", memory=memory))


def queue_up(
    client: Peer, count: int, *, size: int = 10, type_: int = P.SUBMIT_JOB_BG, **names: bytes
) -> list[bytes]:
    """Submit background jobs whose workloads begin with their number; return their handles."""
    function, unique = names.get("function", b"f"), names.get("unique", b"")
    for number in range(count):
        client.send(type_, function, unique and unique + b"%d" % number, (b"%d " % number).ljust(size, b"."))
    client._farm.save_all()
    created = client.read()
    assert {each.type for each in created} == {P.JOB_CREATED}
    return [each.args[0] for each in created]


def run_all(worker: Peer) -> list[bytes]:
    """Run all jobs, reading back what is away; return their handles in order."""
    farm, handles = worker._farm, []
    while True:
        handle = worker.grab()
        if handle is not None:
            worker.complete(handle)
            handles.append(handle)
        elif farm.loads:
            farm.load_all()
        else:
            return handles


def test_jobs_beyond_the_memory_stay_in_the_store() -> None:
    """Of what does not fit, neither workload nor job is kept; all of it is counted, and runs in order."""
    farm = a_farm(memory=100)
    client = farm.connect()
    handles = queue_up(client, 10) + queue_up(client, 990)
    assert farm.engine.inspection.workload_bytes == 100
    assert len(farm.engine.inspection.jobs) == 10
    assert farm.engine.job_count == 1000
    assert client.ask(b"status") == b"f\t1000\t0\t0\n.\n"
    worker = farm.worker()
    assert run_all(worker) == handles
    assert farm.kept == {}
    worker.leave()
    client.leave()
    assert farm.leftovers() == {}


def test_workload_reducer_and_unique_come_back() -> None:
    """A job that was away is assigned with all that it was submitted with."""
    farm = a_farm(memory=0)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_REDUCE_JOB_BACKGROUND, b"f", b"u", b"reducer", b"", b"w\0rk")
    farm.save_all()
    [created] = client.read()
    worker.send(P.GRAB_JOB_ALL)
    assert worker.read_types() == [P.NO_JOB]
    farm.load_all()
    worker.send(P.GRAB_JOB_ALL)
    assert worker.read() == [packet(P.JOB_ASSIGN_ALL, created.args[0], b"f", b"u", b"reducer", b"w\0rk")]


def test_worker_that_is_quicker_than_the_store_sleeps_and_is_woken() -> None:
    """Until the next job is there a worker gets NO_JOB and may sleep; it is woken when it is."""
    farm = a_farm(memory=0)
    client, worker = farm.connect(), farm.worker()
    assert worker.sleep() == []
    [handle] = queue_up(client, 1)
    assert worker.read_types() == [P.NOOP]
    assert worker.grab() is None
    assert len(farm.loads) == 1
    assert worker.grab() is None
    assert worker.sleep() == []
    assert len(farm.loads) == 1
    farm.load_all()
    assert worker.read_types() == [P.NOOP]
    assert worker.grab() == handle


def test_worker_that_waits_for_a_load_hands_its_wake_up_on() -> None:
    """One that was woken, and sleeps as a more urgent job is being loaded, leaves its job to another."""
    farm = a_farm(memory=0)
    client, both, other = farm.connect(), farm.worker(b"f", b"g"), farm.worker(b"f")
    for worker in (both, other):
        worker.send(P.PRE_SLEEP)
    client.send(P.SUBMIT_JOB, b"f", b"", b"work")
    assert (both.read_types(), other.read_types()) == ([P.NOOP], [])
    assert client.read_types() == [P.JOB_CREATED]
    queue_up(client, 1, function=b"g", type_=P.SUBMIT_JOB_HIGH_BG)
    both.send(P.PRE_SLEEP)
    assert (both.read_types(), other.read_types()) == ([], [P.NOOP])


def test_worker_that_comes_late_has_jobs_read() -> None:
    """Who goes to sleep while there are jobs in the store only is woken too."""
    farm = a_farm(memory=0)
    [handle] = queue_up(farm.connect(), 1)
    worker = farm.worker()
    assert farm.loads == []
    assert worker.sleep() == []
    farm.load_all()
    assert worker.read_types() == [P.NOOP]
    assert worker.grab() == handle


def test_jobs_are_read_before_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next jobs are asked for while half of the last ones are still there, and only once."""
    monkeypatch.setattr(lane, "READ_AHEAD_JOBS", 10)
    farm = a_farm(memory=0)
    handles = queue_up(farm.connect(), 30)
    worker = farm.worker()
    assert worker.grab() is None
    farm.load_all()
    taken = [worker.grab() for _ in range(4)]
    assert farm.loads == []
    taken += [worker.grab() for _ in range(2)]
    assert [len(ids) for _, ids in farm.loads] == [10]
    taken += [worker.grab() for _ in range(3)]
    farm.load_all()
    taken += [worker.grab() for _ in range(9)]
    assert taken == handles[:18]


def test_read_ahead_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large jobs fewer are read ahead, but always one."""
    monkeypatch.setattr(lane, "READ_AHEAD_BYTES", 100)
    for size, count in ((20, 5), (500, 1)):
        farm = a_farm(memory=0)
        queue_up(farm.connect(), 20, size=size)
        assert farm.worker().grab() is None
        assert [len(ids) for _, ids in farm.loads] == [count]


def test_foreground_jobs_keep_their_place() -> None:
    """Jobs that cannot go away wait behind those that are, and are done in their turn."""
    farm = a_farm(memory=20)
    client, other = farm.connect(), farm.connect()
    first = queue_up(client, 5)
    middle = other.submit(b"now")
    last = queue_up(client, 5)
    lost = farm.connect()
    lost.submit(b"lost")
    lost.leave()
    worker = farm.worker()
    assert run_all(worker) == [*first, middle, *last]
    worker.leave()
    client.leave()
    other.leave()
    assert farm.leftovers() == {}


def test_high_priority_goes_first_though_it_is_away() -> None:
    """A worker waits for a high job that is being read rather than taking a low one."""
    farm = a_farm(memory=30)
    client = farm.connect()
    low = queue_up(client, 3, type_=P.SUBMIT_JOB_LOW_BG)
    high = queue_up(client, 3, type_=P.SUBMIT_JOB_HIGH_BG)
    worker = farm.worker()
    assert worker.grab() is None
    assert run_all(worker) == high + low


def test_background_submission_joins_a_job_that_is_away() -> None:
    """The same unique is the same job, wherever it is."""
    farm = a_farm(memory=0)
    client = farm.connect()
    handles = queue_up(client, 3, unique=b"u")
    assert client.submit(b"other", unique=b"u1", type_=P.SUBMIT_JOB_BG) == handles[1]
    assert farm.engine.job_count == 3
    assert len(farm.engine.inspection.jobs) == 0
    assert run_all(farm.worker()) == handles


def test_foreground_submission_joins_a_job_that_is_away() -> None:
    """Whoever joins a job that is away gets its result, and it keeps its place."""
    farm = a_farm(memory=0)
    client, worker = farm.connect(), farm.worker()
    handles = queue_up(client, 3, unique=b"u")
    assert client.submit(unique=b"u1") == handles[1]
    assert client.submit(unique=b"u1") == handles[1]
    assert worker.grab() is None
    farm.load_all()
    assert worker.grab() == handles[0]
    assert worker.grab() == handles[1]
    worker.complete(handles[1], b"r")
    assert client.read() == [packet(P.WORK_COMPLETE, handles[1], b"r")] * 2
    worker.complete(handles[0])
    assert run_all(worker) == handles[2:]
    client.leave()
    worker.leave()
    assert farm.leftovers() == {}


def test_status_of_a_job_that_is_away() -> None:
    """It is known, by handle and by unique, and asking does not bring it back."""
    farm = a_farm(memory=0)
    client = farm.connect()
    [handle, _] = queue_up(client, 2, unique=b"u")
    client.send(P.GET_STATUS, handle)
    client.send(P.GET_STATUS_UNIQUE, b"u0")
    client.send(P.GET_STATUS, handle + b"1")
    client.send(P.GET_STATUS, b"H:other:1")
    assert client.read() == [
        packet(P.STATUS_RES, handle, b"1", b"0", b"0", b"0"),
        packet(P.STATUS_RES_UNIQUE, b"u0", b"1", b"0", b"0", b"0", b"0"),
        packet(P.STATUS_RES, handle + b"1", b"0", b"0", b"0", b"0"),
        packet(P.STATUS_RES, b"H:other:1", b"0", b"0", b"0", b"0"),
    ]
    assert len(farm.engine.inspection.jobs) == 0


def test_lists_show_jobs_that_are_away() -> None:
    """The text protocol lists them as it lists the others."""
    farm = a_farm(memory=0)
    client = farm.connect()
    handles = queue_up(client, 2, unique=b"u")
    assert client.ask(b"show jobs") == b"".join(b"%b\t0\t0\t1\n" % handle for handle in handles) + b".\n"
    assert client.ask(b"show unique jobs") == b"u0\nu1\n.\n"


@pytest.mark.parametrize("by_unique", [False, True])
@pytest.mark.parametrize("while_loading", [False, True])
def test_cancelled_job_that_is_away_never_runs(*, by_unique: bool, while_loading: bool) -> None:
    """It is gone from the store and from all lists, its unique is free, and the others run."""
    farm = a_farm(memory=0)
    client, worker = farm.connect(), farm.worker()
    handles = queue_up(client, 3, unique=b"u")
    if while_loading:
        assert worker.grab() is None
    command = b"cancel unique f u1" if by_unique else b"cancel job " + handles[1]
    assert client.ask(command) == b"OK\r\n"
    assert client.ask(command).startswith(b"ERR UNKNOWN_JOB")
    assert len(farm.kept) == 2
    assert client.ask(b"status") == b"f\t2\t0\t1\n.\n"
    [again] = queue_up(client, 1, unique=b"u1")
    assert run_all(worker) == [handles[0], handles[2], again]
    client.leave()
    worker.leave()
    assert farm.leftovers() == {}


def test_all_that_is_away_may_be_cancelled() -> None:
    """A lane of dead jobs gives NO_JOB, and jobs that come after it run."""
    farm = a_farm(memory=0)
    client, worker = farm.connect(), farm.worker()
    for handle in queue_up(client, 5):
        assert client.ask(b"cancel job " + handle) == b"OK\r\n"
    assert worker.sleep() == []
    handles = queue_up(client, 2)
    assert worker.read_types() == [P.NOOP]
    assert run_all(worker) == handles
    client.leave()
    worker.leave()
    assert farm.leftovers() == {}


def test_nothing_is_left_when_the_last_job_in_memory_is_unwanted() -> None:
    """Ids of cancelled jobs go with the last job of their lane, also when that was in memory."""
    farm = a_farm(memory=0)
    client, waiting = farm.connect(), farm.connect()
    waiting.send(P.SUBMIT_JOB, b"f", b"", b"work")
    [handle] = queue_up(client, 1)
    assert client.ask(b"cancel job " + handle) == b"OK\r\n"
    waiting.leave()
    client.leave()
    assert farm.leftovers() == {}


def test_job_that_is_no_longer_in_the_store_is_counted_out() -> None:
    """If somebody deletes rows, their jobs fail for who waits, and all others run."""
    farm = a_farm(memory=0)
    client, worker = farm.connect(), farm.worker()
    handles = queue_up(client, 5, unique=b"u")
    client.submit(unique=b"u3")
    ids = sorted(farm.kept)
    del farm.kept[ids[1]], farm.kept[ids[3]]
    assert run_all(worker) == [handles[0], handles[2], handles[4]]
    assert client.read() == [packet(P.WORK_FAIL, handles[3])]
    client.leave()
    worker.leave()
    assert farm.leftovers() == {}


def test_job_that_was_taken_away_from_its_worker_stays_in_memory() -> None:
    """How often a job was tried is not stored, so it does not go away again."""
    farm = a_farm(memory=0)
    handles = queue_up(farm.connect(), 2)
    worker = farm.worker()
    assert worker.grab() is None
    farm.load_all()
    assert worker.grab() == handles[0]
    worker.leave()
    worker = farm.worker()
    assert [worker.grab(), worker.grab()] == [handles[1], handles[0]]


def test_unique_of_the_workload_stays_in_memory() -> None:
    """A job with the unique ``-`` is looked up by its workload, which is therefore kept."""
    farm = a_farm(memory=0)
    client = farm.connect()
    client.send(P.SUBMIT_JOB_BG, b"f", b"-", b"data")
    farm.save_all()
    [created] = client.read()
    assert client.submit(b"data", unique=b"-", type_=P.SUBMIT_JOB_BG) == created.args[0]
    assert farm.worker().grab() == created.args[0]


def test_scheduled_jobs_keep_no_workload() -> None:
    """The workload of a scheduled job is read when its time has come, and it is woken for then."""
    farm = a_farm(memory=1000)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"u", b"%d" % (NOON + 10), b"later")
    farm.save_all()
    [created] = client.read()
    [job] = farm.engine.views.jobs()
    assert job.workload == b""
    assert worker.sleep() == []
    farm.wait(10)
    assert worker.read_types() == [P.NOOP]
    assert worker.grab() is None
    farm.load_all()
    worker.send(P.GRAB_JOB)
    assert worker.read() == [packet(P.JOB_ASSIGN, created.args[0], b"f", b"later")]


def test_restored_jobs_go_away_too() -> None:
    """After a restart no more is in memory than before, and all run in the order of their submission."""
    farm = a_farm(memory=50)
    handles = queue_up(farm.connect(), 300, unique=b"u")
    farm.restart()
    assert len(farm.engine.inspection.jobs) == 5
    assert farm.engine.job_count == 300
    assert run_all(farm.worker()) == handles


def test_jobs_with_handles_of_another_host_go_away_too() -> None:
    """A handle that does not follow from the id is kept, without the workload."""
    farm = a_farm(memory=0)
    handles = queue_up(farm.connect(), 3)
    farm.settings = EngineSettings(handle_prefix=b"H:new", memory=0)
    farm.restart()
    assert [job.workload for job in farm.engine.views.jobs()] == [b""] * 3
    worker = farm.worker()
    assert worker.grab() is None
    farm.load_all()
    worker.send(P.GRAB_JOB)
    [assigned] = worker.read()
    assert assigned.args == [handles[0], b"f", b"0 ......."[:2].ljust(10, b".")]


def test_stored_twice_and_away() -> None:
    """A job that the store has under two ids runs once, though its first one is away."""
    farm = a_farm(memory=0)
    [handle] = queue_up(farm.connect(), 1)
    [stored] = farm.kept.values()
    farm.kept[stored.id + 5] = stored._replace(id=stored.id + 5)
    farm.restart()
    assert farm.engine.job_count == 1
    assert run_all(farm.worker()) == [handle]
    assert farm.kept == {}


def test_memory_is_nothing_without_a_store() -> None:
    """A server that stores nothing keeps all jobs in memory, as they are nowhere else."""
    farm = Farm(durable=False, settings=EngineSettings(handle_prefix=b"H:farm", memory=0))
    handle = farm.connect().submit(b"w", type_=P.SUBMIT_JOB_BG)
    assert farm.worker().grab() == handle


def test_many_priorities_and_functions_stay_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes when, each lane is first in, first out, and nothing is lost or done twice."""
    monkeypatch.setattr(lane, "READ_AHEAD_JOBS", 7)
    monkeypatch.setattr(lane, "SEGMENT_IDS", 5)
    choice = random.Random(4)
    farm = a_farm(memory=60)
    client = farm.connect()
    workers = [farm.worker(b"f", b"g") for _ in range(3)]
    types = {P.SUBMIT_JOB_HIGH_BG: 0, P.SUBMIT_JOB_BG: 1, P.SUBMIT_JOB_LOW_BG: 2, P.SUBMIT_JOB: 1}
    sent: dict[tuple[bytes, int], list[bytes]] = {}
    done: dict[tuple[bytes, int], list[bytes]] = {}
    lane_of: dict[bytes, tuple[bytes, int]] = {}
    for _ in range(3_000):
        if choice.random() < 0.45:
            type_, function = choice.choice(list(types)), choice.choice([b"f", b"g"])
            client.send(type_, function, b"", b"w" * choice.randrange(20))
            farm.save_all()
            [created] = (each for each in client.read() if each.type == P.JOB_CREATED)
            lane_of[created.args[0]] = function, types[type_]
            sent.setdefault(lane_of[created.args[0]], []).append(created.args[0])
        elif choice.random() < 0.3:
            farm.load_all()
        else:
            worker = choice.choice(workers)
            worker.read()
            handle = worker.grab()
            if handle is not None:
                done.setdefault(lane_of[handle], []).append(handle)
                worker.complete(handle)
    for worker in workers:
        worker.read()
        for handle in run_all(worker):
            done.setdefault(lane_of[handle], []).append(handle)
    assert done == sent
    assert sum(map(len, done.values())) > 1_000
    for peer in [client, *workers]:
        peer.leave()
    assert farm.leftovers() == {}
