"""What the store has when the server starts, also where it is more than it should be."""

from __future__ import annotations

from tests.kit.engine_farm import Farm, P, packet


def test_job_that_is_twice_in_the_store_runs_once() -> None:
    """A job that was saved twice, as its first save was reported as failed and came through, is one job.

    The server died before the store could be told to forget the first save.
    """
    farm = Farm(durable=True)
    client = farm.connect()
    handle = client.submit(unique=b"u")
    client.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    came_through = farm.saves[0]
    farm.fail_saves()
    client.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    farm.save_all()
    assert client.read_types() == [P.ERROR, P.JOB_CREATED]
    farm.kept[came_through.id] = came_through
    farm.forgotten.clear()
    farm.restart()
    worker = farm.worker()
    assert worker.grab() == handle
    assert worker.grab() is None
    worker.complete(handle)
    assert worker.read() == []
    client = farm.connect()
    client.send(P.GET_STATUS, handle)
    assert client.read() == [packet(P.STATUS_RES, handle, b"0", b"0", b"0", b"0")]
    client.leave()
    worker.leave()
    assert farm.kept == {}
    assert farm.leftovers() == {}
