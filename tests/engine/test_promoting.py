"""Promotion: a background submission joins a foreground job, which then has to be saved."""

from __future__ import annotations

import pytest

from tests.kit.engine_farm import Farm, P, Peer, packet

NOT_STORED = packet(P.ERROR, b"QUEUE_ERROR", b"The job was not stored: disk full")


def durable() -> tuple[Farm, Peer, Peer]:
    """A farm with a store, a client and a worker."""
    farm = Farm(durable=True)
    return farm, farm.connect(), farm.worker()


def background(peer: Peer, unique: bytes = b"", type_: int = P.SUBMIT_JOB_BG, workload: bytes = b"w") -> None:
    """Submit a job without waiting for the reply."""
    peer.send(type_, b"f", unique, workload)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_promoted_job_is_saved(state: str) -> None:
    """A background submission that joins a foreground job is promised what the store has, and no sooner."""
    farm, client, worker = durable()
    owner = farm.connect()
    handle = client.submit(b"w", b"u")
    if state == "running":
        worker.grab()
    background(owner, b"u")
    background(owner, b"u")
    assert owner.read() == []
    assert [job.handle for job in farm.saves] == [handle]
    farm.save_all()
    assert owner.read() == [packet(P.JOB_CREATED, handle)] * 2
    client.leave()
    farm.restart()
    assert farm.worker().grab() == handle


def test_foreground_client_does_not_wait_for_a_promotion() -> None:
    """Who joins in the foreground while the promotion is saved has the job already."""
    farm, client, _ = durable()
    owner, guest = farm.connect(), farm.connect()
    handle = client.submit(unique=b"u")
    background(owner, b"u")
    assert guest.submit(unique=b"u") == handle


def test_promoted_job_needs_no_foreground_client_any_more() -> None:
    """The foreground client may leave while the promotion is being saved."""
    farm, client, worker = durable()
    owner = farm.connect()
    handle = client.submit(unique=b"u")
    background(owner, b"u")
    client.leave()
    farm.save_all()
    assert owner.read() == [packet(P.JOB_CREATED, handle)]
    assert worker.grab() == handle


def test_job_ends_while_its_promotion_is_being_saved() -> None:
    """The outcome is a better promise than the save: the submitter is answered, and the store forgets it."""
    farm, client, worker = durable()
    owner = farm.connect()
    handle = client.submit(unique=b"u")
    worker.grab()
    background(owner, b"u")
    worker.complete(handle, b"r")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"r")]
    assert owner.read() == [packet(P.JOB_CREATED, handle)]
    farm.save_all()
    assert farm.kept == {}
    assert owner.read() == []


def test_promotion_by_the_same_client_keeps_its_order() -> None:
    """A client that submits a job both ways hears that it was created before it hears of its end."""
    _, client, worker = durable()
    handle = client.submit(unique=b"u")
    worker.grab()
    background(client, b"u")
    worker.complete(handle, b"r")
    assert client.read() == [packet(P.JOB_CREATED, handle), packet(P.WORK_COMPLETE, handle, b"r")]


@pytest.mark.parametrize("state", ["queued", "running"])
def test_promotion_that_cannot_be_saved_leaves_a_foreground_job(state: str) -> None:
    """The background submitter gets an ERROR, the foreground client its result."""
    farm, client, worker = durable()
    owner = farm.connect()
    handle = client.submit(unique=b"u")
    if state == "running":
        worker.grab()
    background(owner, b"u")
    farm.fail_saves()
    assert owner.read() == [NOT_STORED]
    if state == "queued":
        assert worker.grab() == handle
    worker.complete(handle, b"r")
    assert client.read() == [packet(P.WORK_COMPLETE, handle, b"r")]


def test_promotion_that_cannot_be_saved_ends_with_the_client() -> None:
    """When the foreground client left meanwhile, nobody waits for the job, and it is dropped."""
    farm, client, worker = durable()
    owner = farm.connect()
    client.submit(unique=b"u")
    background(owner, b"u")
    client.leave()
    farm.fail_saves()
    assert owner.read() == [NOT_STORED]
    assert worker.grab() is None
    owner.leave()
    worker.leave()
    assert farm.leftovers() == {}


def test_promotion_is_tried_again_after_a_failure() -> None:
    """A submitter that tries again is promised the job only when this save is done, and then it is kept."""
    farm, client, _ = durable()
    owner = farm.connect()
    handle = client.submit(b"w", b"u")
    background(owner, b"u")
    farm.fail_saves()
    assert owner.read() == [NOT_STORED]
    background(owner, b"u")
    assert owner.read() == []
    farm.save_all()
    assert owner.read() == [packet(P.JOB_CREATED, handle)]
    farm.restart()
    assert farm.worker().grab() == handle
