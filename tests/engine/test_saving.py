"""Background jobs on a durable store: no promise before its save, and replies in order all the same."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.outbox import StoredJob
from gearman_twisted.engine.settings import EngineSettings
from tests.kit.engine_farm import NOON, Farm, P, Peer, packet

NOT_STORED = packet(P.ERROR, b"QUEUE_ERROR", b"The job was not stored: disk full")
ECHO = packet(P.ECHO_RES, b"x")


def durable() -> tuple[Farm, Peer, Peer]:
    """A farm with a store, a client and a worker."""
    farm = Farm(durable=True)
    return farm, farm.connect(), farm.worker()


def background(peer: Peer, unique: bytes = b"", type_: int = P.SUBMIT_JOB_BG, workload: bytes = b"w") -> None:
    """Submit a job without waiting for the reply."""
    peer.send(type_, b"f", unique, workload)


# Saved.


@pytest.mark.parametrize("type_", [P.SUBMIT_JOB_BG, P.SUBMIT_JOB_HIGH_BG, P.SUBMIT_JOB_LOW_BG])
def test_background_job_is_promised_and_run_when_it_is_saved(type_: int) -> None:
    """Until the store has the job its client hears nothing, no worker is woken and none gets it."""
    farm, client, worker = durable()
    worker.sleep()
    background(client, b"u", type_)
    assert client.read() == worker.read() == []
    assert worker.grab() is None
    worker.sleep()
    farm.save_all()
    [created] = client.read()
    assert created.type == P.JOB_CREATED
    assert worker.read() == [packet(P.NOOP)]
    assert worker.grab() == created.args[0]


def test_job_is_stored_as_it_was_submitted() -> None:
    """The store gets all that is needed to run the job again."""
    farm, client, _ = durable()
    background(client, b"u", P.SUBMIT_JOB_LOW_BG, b"\0w")
    client.send(P.SUBMIT_JOB_EPOCH, b"g", b"", b"2000000", b"")
    assert farm.saves == [
        (1, b"H:farm:1", b"f", b"u", b"\0w", 2, 0, b"", b""),
        (2, b"H:farm:2", b"g", b"", b"", 1, 2000000, b"", b""),
    ]


def test_foreground_job_is_not_saved() -> None:
    """A client that waits for its job submits it again; the store has no part in it."""
    farm, client, worker = durable()
    handle = client.submit()
    assert worker.grab() == handle
    worker.complete(handle)
    assert farm.saves == []
    assert farm.forgotten == set()


@pytest.mark.parametrize("ending", [P.WORK_COMPLETE, P.WORK_FAIL, P.WORK_EXCEPTION])
def test_job_leaves_the_store_when_it_ends(ending: int) -> None:
    """A job is forgotten when it is finished, and not when it is assigned."""
    farm, client, worker = durable()
    background(client)
    farm.save_all()
    handle = worker.grab()
    assert handle
    assert list(farm.kept) == [1]
    worker.send(ending, handle, *([] if ending == P.WORK_FAIL else [b""]))
    assert farm.kept == {}


def test_replies_stay_in_order() -> None:
    """What a client asks for behind a submit is answered behind it, whatever the store takes its time for."""
    farm, client, worker = durable()
    background(client)
    client.send(P.ECHO_REQ, b"x")
    client.send(P.SUBMIT_JOB, b"f", b"", b"")
    background(client)
    client.send(P.OPTION_REQ, b"nonsense")
    client.send_bytes(b"version\n")
    worker.complete(worker.grab() or b"", b"r")
    assert client.unread == b""
    first, second = farm.saves
    farm.saves = [second]
    farm.save_all()
    assert client.unread == b""
    farm.saves = [first]
    farm.save_all()
    assert client.unread.endswith(b"OK 0\n" + b"\0RES\0\0\0\x0d\0\0\0\x0aH:farm:2\0r")
    del client.unread[client.unread.index(b"OK 0\n") :]
    assert client.read() == [
        packet(P.JOB_CREATED, b"H:farm:1"),
        ECHO,
        packet(P.JOB_CREATED, b"H:farm:2"),
        packet(P.JOB_CREATED, b"H:farm:3"),
        packet(P.ERROR, b"UNKNOWN_OPTION", b"Server does not recognize given option"),
    ]


def test_other_connections_do_not_wait() -> None:
    """A save holds up the replies of its own connection only."""
    farm, client, _ = durable()
    other = farm.connect()
    background(client)
    other.send(P.ECHO_REQ, b"x")
    assert other.read() == [ECHO]


def test_held_replies_are_counted() -> None:
    """The rim can see how much waits for the store, so that it reads no more from a flood."""
    farm, client, _ = durable()
    for _ in range(3):
        background(client)
    client.send(P.ECHO_REQ, b"x")
    assert farm.engine.waits_for_saves(client.number)[0] == 4
    farm.save_all()
    assert farm.engine.waits_for_saves(client.number)[0] == 0


@pytest.mark.parametrize("type_", [P.SUBMIT_JOB, P.SUBMIT_JOB_BG])
def test_job_that_is_being_saved_is_joined(type_: int) -> None:
    """Who joins a job that is not yet stored waits for the same save, and then has the same job."""
    farm, client, worker = durable()
    other = farm.connect()
    background(client, b"u")
    other.send(type_, b"f", b"u", b"")
    assert other.read() == []
    assert len(farm.saves) == 1
    farm.save_all()
    [created] = client.read()
    assert other.read() == [created]
    worker.complete(worker.grab() or b"")
    assert other.read_types() == ([P.WORK_COMPLETE] if type_ == P.SUBMIT_JOB else [])
    assert client.read() == []


def test_client_that_left_does_not_stop_a_save() -> None:
    """A job whose submitter left while it was saved runs all the same."""
    farm, client, worker = durable()
    background(client)
    client.leave()
    farm.save_all()
    assert worker.grab() == b"H:farm:1"


def test_guest_that_left_does_not_stop_a_save() -> None:
    """A foreground client that joined and left while the job was saved leaves it as it was."""
    farm, client, worker = durable()
    guest = farm.connect()
    background(client, b"u")
    guest.send(P.SUBMIT_JOB, b"f", b"u", b"")
    guest.leave()
    farm.save_all()
    assert client.read_types() == [P.JOB_CREATED]
    assert worker.grab() == b"H:farm:1"


# Failed.


def test_job_that_cannot_be_saved_is_refused() -> None:
    """Everyone who waits for the save gets an ERROR in its place; the job is gone and its unique free."""
    farm, client, worker = durable()
    guest = farm.connect()
    background(client, b"u")
    guest.send(P.SUBMIT_JOB, b"f", b"u", b"")
    client.send(P.ECHO_REQ, b"x")
    farm.fail_saves()
    assert client.read() == [NOT_STORED, ECHO]
    assert guest.read() == [NOT_STORED]
    assert worker.grab() is None
    background(client, b"u")
    farm.save_all()
    assert worker.grab() == b"H:farm:2"


def test_job_of_a_failed_save_never_comes_back() -> None:
    """A commit that was reported as failed may have come through: the store is told to forget it."""
    farm, client, _ = durable()
    background(client)
    farm.fail_saves()
    assert farm.forgotten == {1}


def test_reason_of_the_store_fits_the_packet() -> None:
    """A reason of any length and any characters becomes an ERROR that clients can read."""
    farm, client, _ = durable()
    background(client)
    farm.fail_saves("NUL \0, \udcff, é " + "x" * 100_000)
    [error] = client.read()
    assert error.type == P.ERROR
    assert error.args[1].startswith("The job was not stored: NUL  , ?, é xx".encode())
    assert len(error.args[1]) < 8192


def test_client_that_left_hears_nothing_of_a_failure() -> None:
    """A failed save of a client that left is no trouble."""
    farm, client, worker = durable()
    background(client)
    client.leave()
    farm.fail_saves()
    worker.leave()
    assert farm.leftovers() == {}


# After a restart.


def test_restart_brings_jobs_back_as_they_were() -> None:
    """Stored jobs keep handle, unique, workload, priority and order; new handles do not repeat old ones."""
    farm, client, _ = durable()
    handles: dict[tuple[int, bytes], bytes] = {}
    for type_ in (P.SUBMIT_JOB_LOW_BG, P.SUBMIT_JOB_BG, P.SUBMIT_JOB_HIGH_BG):
        for number in (b"1", b"2"):
            background(client, b"u%d" % len(handles), type_, number)
            farm.save_all()
            [created] = client.read()
            handles[type_, number] = created.args[0]
    farm.restart()
    worker, client = farm.worker(), farm.connect()
    assert client.submit(unique=b"u0") == handles[P.SUBMIT_JOB_LOW_BG, b"1"]
    assert client.submit(unique=b"new", function=b"g") not in handles.values()
    order = [
        (type_, number)
        for type_ in (P.SUBMIT_JOB_HIGH_BG, P.SUBMIT_JOB_BG, P.SUBMIT_JOB_LOW_BG)
        for number in (b"1", b"2")
    ]
    for key in order:
        worker.send(P.GRAB_JOB)
        assert worker.read() == [packet(P.JOB_ASSIGN, handles[key], b"f", key[1])]


def test_restart_runs_a_job_again_that_was_running() -> None:
    """A job that was assigned and not ended runs again, under its handle."""
    farm, client, worker = durable()
    background(client)
    farm.save_all()
    handle = worker.grab()
    farm.restart()
    assert farm.worker().grab() == handle


def test_job_that_was_not_promised_may_come_back() -> None:
    """A crash between commit and reply leaves a job that runs once more than its client knows."""
    farm, client, _ = durable()
    background(client)
    farm.commit()
    farm.restart()
    assert farm.worker().grab() == b"H:farm:1"


def test_restored_job_waits_for_its_time() -> None:
    """A job that was scheduled for later is scheduled for the same time after a restart."""
    farm, client, _ = durable()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % (NOON + 60), b"")
    farm.save_all()
    farm.wait(20)
    farm.restart()
    worker = farm.worker()
    worker.sleep()
    farm.wait(39)
    assert worker.grab() is None
    worker.sleep()
    farm.wait(1)
    assert worker.read() == [packet(P.NOOP)]
    assert worker.grab() == b"H:farm:1"


def test_restored_job_leaves_the_store_when_it_ends() -> None:
    """A job that came back from the store is forgotten there when it ends."""
    farm, client, _ = durable()
    background(client)
    farm.save_all()
    farm.restart()
    worker = farm.worker()
    worker.complete(worker.grab() or b"")
    assert farm.kept == {}


def test_restored_jobs_may_share_a_unique() -> None:
    """A store may have two jobs with one unique; both run, and who joins gets the first of them."""
    farm = Farm(durable=True)
    for id_ in (1, 2):
        farm.kept[id_] = StoredJob(id_, b"H:old:%d" % id_, b"f", b"u", b"", 1)
    farm.restart()
    client, worker = farm.connect(), farm.worker()
    assert client.submit(unique=b"u") == b"H:old:1"
    assert [worker.grab(), worker.grab()] == [b"H:old:1", b"H:old:2"]
    worker.complete(b"H:old:2")
    assert client.submit(unique=b"u") == b"H:old:1"
    worker.complete(b"H:old:1")
    client.read()
    assert client.submit(unique=b"u") not in {b"H:old:1", b"H:old:2"}


def test_new_handles_go_on_behind_those_of_the_store() -> None:
    """Even if the clock was set back meanwhile, no stored job's number is given again."""
    farm = Farm(durable=True)
    farm.engine.restore(StoredJob(7, b"H:farm:7", b"f", b"", b"", 1), farm.now)
    assert farm.connect().submit() == b"H:farm:8"


# What waits behind a save.


def test_a_broken_stream_is_closed_behind_its_replies() -> None:
    """A peer that turns to nonsense while its job is being saved still hears that the job was created."""
    farm, client, _ = durable()
    background(client)
    client.send_bytes(b"\0BAD" + bytes(20))
    assert farm.closes == []
    farm.save_all()
    assert client.read_types() == [P.JOB_CREATED, P.ERROR]
    assert farm.closes == [client.number]


def test_what_waits_for_a_save_is_bounded() -> None:
    """A peer with results of other jobs piling up behind a save is closed, not kept for."""
    farm = Farm(durable=True, settings=EngineSettings(max_held_bytes=1000))
    client, worker = farm.connect(), farm.worker()
    client.submit()
    handle = worker.grab()
    assert handle is not None
    background(client)
    worker.send(P.WORK_DATA, handle, bytes(900))
    assert farm.closes == []
    worker.send(P.WORK_DATA, handle, bytes(900))
    assert farm.closes == [client.number]


# Too large for the store.


TOO_LARGE = packet(
    P.ERROR,
    b"QUEUE_ERROR",
    b"The job was not stored: a store takes workloads of up to 10 bytes, and this one has 11",
)


def limited() -> tuple[Farm, Peer, Peer]:
    """A farm whose store takes 10 bytes."""
    farm, client, worker = durable()
    farm.engine.limit_workloads(10, "a store")
    return farm, client, worker


@pytest.mark.parametrize(
    ("type_", "args"),
    [
        (P.SUBMIT_JOB_BG, [b"f", b"u"]),
        (P.SUBMIT_JOB_HIGH_BG, [b"f", b""]),
        (P.SUBMIT_JOB_EPOCH, [b"f", b"u", b"2000000"]),
        (P.SUBMIT_JOB_SCHED, [b"f", b"u", b"0", b"0", b"*", b"*", b"*"]),
        (P.SUBMIT_REDUCE_JOB_BACKGROUND, [b"f", b"u", b"r", b""]),
    ],
)
def test_workload_beyond_the_store_is_refused_at_once(type_: int, args: list[bytes]) -> None:
    """A background job that the store cannot take is refused before a commit, with its name and limit."""
    farm, client, worker = limited()
    client.send(type_, *args, b"x" * 11)
    assert client.read() == [TOO_LARGE]
    assert (farm.saves, farm.engine.job_count, worker.grab()) == ([], 0, None)
    client.send(type_, *args, b"x" * 10)
    assert [job.workload for job in farm.saves] == [b"x" * 10]


def test_foreground_job_has_no_limit_of_the_store() -> None:
    """A foreground job is never stored, so the store does not limit it."""
    _, client, worker = limited()
    handle = client.submit(workload=b"x" * 11)
    assert worker.grab() == handle


def test_foreground_job_that_cannot_be_stored_stays_one() -> None:
    """A background submission that joins a larger foreground job is refused, and that one goes on."""
    farm, client, worker = limited()
    handle = client.submit(unique=b"u", workload=b"x" * 11)
    background(farm.connect(), b"u")
    other = farm.connect()
    background(other, b"u", workload=b"x" * 11)
    assert other.read() == [TOO_LARGE]
    assert farm.saves == []
    assert worker.grab() == handle
    worker.complete(handle, b"r")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


def test_store_without_a_limit() -> None:
    """A store that names no limit is asked for everything."""
    farm, client, _ = durable()
    farm.engine.limit_workloads(None, "a store")
    background(client, workload=b"x" * 100_000)
    assert len(farm.saves) == 1
