"""The memory budget of the whole server, in memory: who is slowed down, who is closed, who goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.server import connection as connection_module
from gearman_twisted.server.machine import memory_bytes
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, ErrorCode, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.server_rig import Peer, ServerRig, SlowStore

P = PacketType

MB = 1_000_000
LIMIT = 10 * MB
OUT_OF_MEMORY = b"The server's memory is used up, see its option --max-memory"


@pytest.fixture
def rig() -> ServerRig:
    """A server with a budget of 10 MB."""
    return ServerRig(settings=EngineSettings(max_memory=LIMIT))


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> dict[object, int]:
    """How much output each peer's transport keeps; 0 for those that are missing."""
    sizes: dict[object, int] = {}
    monkeypatch.setattr(connection_module, "unsent_bytes", lambda transport: sizes.get(transport, 0))
    return sizes


def begin(peer: Peer, size: int) -> None:
    """Send that much of a packet, and keep the rest back."""
    peer.protocol.dataReceived(encode(REQ, P.SUBMIT_JOB_BG, b"f", b"", bytes(size))[:size])


def is_read(peer: Peer) -> bool:
    return peer.transport.producerState == "producing"


def is_closed(peer: Peer) -> bool:
    return bool(peer.transport.disconnecting)


def run_a_job(client: Peer, worker: Peer) -> None:
    """Run a foreground job from end to end."""
    client.send(P.SUBMIT_JOB, b"healthy", b"", b"")
    [created] = client.received()
    assert created.type == P.JOB_CREATED, created
    worker.send(P.CAN_DO, b"healthy")
    worker.send(P.GRAB_JOB)
    [assigned] = worker.received()
    worker.send(P.WORK_COMPLETE, assigned.args[0], b"done")
    assert [packet.type for packet in client.received()] == [P.WORK_COMPLETE]


def test_large_peers_are_not_read_beyond_the_budget(rig: ServerRig) -> None:
    """At the limit the peer that adds to it is not read, small ones are; when there is room, all are."""
    first, second, client, worker = (rig.connect() for _ in range(4))
    begin(first, 9 * MB)
    begin(second, 1 * MB)
    assert is_read(first)
    assert not is_read(second)
    run_a_job(client, worker)
    first.lose()
    rig.clock.advance(1)
    assert is_read(second)
    assert not is_closed(second)


def test_peers_that_are_not_read_are_closed_in_the_end(rig: ServerRig) -> None:
    """Of peers that were not read for some seconds, without room meanwhile, the largest is closed."""
    first, second = rig.connect(), rig.connect()
    begin(first, 9 * MB)
    begin(second, 1 * MB)
    rig.clock.pump([0.1] * 40)
    assert not is_closed(first)
    rig.clock.pump([0.1] * 20)
    assert is_closed(first)
    assert not is_closed(second)
    first.lose()
    rig.clock.advance(0.1)
    assert is_read(second)


def test_large_peer_that_is_silent_is_closed_in_the_end(rig: ServerRig) -> None:
    """A peer that sent nearly a whole budget and falls silent does not keep the jobs of others out."""
    silent, small, client = (rig.connect() for _ in range(3))
    begin(silent, LIMIT - MB // 100)
    begin(small, MB // 100)
    while client.received()[-1:] != [Packet(P.ERROR, [ErrorCode.QUEUE_ERROR, OUT_OF_MEMORY])]:
        client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    assert not is_read(silent)
    assert is_read(small)
    rig.clock.pump([0.1] * 48)
    assert not is_closed(silent)
    rig.clock.pump([0.1] * 4)
    assert is_closed(silent)
    silent.lose()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    assert [packet.type for packet in client.received()] == [P.JOB_CREATED]
    assert is_read(small)
    assert not is_closed(small)


def test_largest_peer_is_closed_beyond_the_headroom(rig: ServerRig) -> None:
    """At 110 % the largest peer is closed at once, and no more than it takes."""
    peers = [rig.connect() for _ in range(3)]
    for peer, size in zip(peers, (3 * MB, 5 * MB, 4 * MB), strict=True):
        begin(peer, size)
    rig.clock.advance(0)
    assert [is_closed(peer) for peer in peers] == [False, True, False]
    peers[1].lose()
    rig.clock.advance(1)
    assert [is_read(peer) for peer in peers] == [True, True, True]


def test_worker_with_a_job_may_send_its_result(rig: ServerRig) -> None:
    """At the limit a worker is read that sends the result of its job: that frees memory."""
    client, worker, other = (rig.connect() for _ in range(3))
    client.send(P.SUBMIT_JOB, b"f", b"", b"")
    worker.send(P.CAN_DO, b"f")
    worker.send(P.GRAB_JOB)
    begin(other, 9 * MB)
    begin(worker, 1 * MB)
    assert is_read(worker)


def test_output_that_was_taken_meanwhile_makes_room(rig: ServerRig, unsent: dict[object, int]) -> None:
    """Nothing tells when a transport has sent its output: it is looked at while the budget is full."""
    slow, other = rig.connect(), rig.connect()
    unsent[slow.transport] = 9 * MB
    slow.send(P.ECHO_REQ, b"x")
    slow.received()
    begin(other, 1 * MB)
    rig.clock.advance(0.1)
    assert not is_read(other)
    unsent.clear()
    rig.clock.advance(0.1)
    assert is_read(other)
    assert not is_closed(slow)


def test_many_queued_jobs_slow_nobody_down(rig: ServerRig) -> None:
    """With the budget full of jobs, large packets are read, as they may be results; new jobs are refused."""
    client, other = rig.connect(), rig.connect()
    for _ in range(11):
        client.send(P.SUBMIT_JOB_BG, b"f", b"", bytes(MB))
    assert [packet.type for packet in client.received()] == [P.JOB_CREATED] * 10 + [P.ERROR]
    begin(other, MB // 2)
    rig.clock.advance(10)
    assert is_read(other)
    assert not is_closed(other)


def test_refusal_tells_the_option(rig: ServerRig) -> None:
    """A refused background job is answered with QUEUE_ERROR; one that joins another is taken."""
    client, other = rig.connect(), rig.connect()
    client.send(P.SUBMIT_JOB_BG, b"f", b"u", bytes(LIMIT))
    client.received()
    other.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    other.send(P.SUBMIT_JOB_SCHED, b"f", b"", b"0", b"", b"", b"", b"", b"")
    other.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    first, second, third = other.received()
    assert first.args[0] == second.args[0] == ErrorCode.QUEUE_ERROR
    assert b"--max-memory" in first.args[1]
    assert third.type == P.JOB_CREATED


def test_recurring_job_skips_its_times(rig: ServerRig) -> None:
    """A recurring job that is due while the budget is full makes no job; the next time, it does."""
    client, worker = rig.connect(), rig.connect()
    client.send(P.SUBMIT_JOB_SCHED, b"f", b"u", b"", b"", b"", b"", b"", b"")
    client.send(P.SUBMIT_JOB_BG, b"g", b"", bytes(LIMIT))
    rig.clock.advance(120)
    assert rig.engine.job_count == 1
    worker.send(P.CAN_DO, b"g")
    worker.send(P.GRAB_JOB)
    [assigned] = worker.received()
    worker.send(P.WORK_COMPLETE, assigned.args[0], b"")
    assert rig.engine.job_count == 0
    rig.clock.advance(60)
    assert rig.engine.job_count == 1


def test_reduce_job_cannot_exceed_the_budget(rig: ServerRig) -> None:
    """A reduce job whose worker sends parts without end fails."""
    client, worker = rig.connect(), rig.connect()
    client.send(P.SUBMIT_REDUCE_JOB, b"f", b"", b"reducer", b"", b"")
    worker.send(P.CAN_DO, b"f")
    worker.send(P.GRAB_JOB)
    [_, assigned] = [*client.received(), *worker.received()]
    for _ in range(20):
        worker.send(P.WORK_DATA, assigned.args[0], bytes(MB))
    assert [packet.type for packet in client.received()] == [P.WORK_FAIL]
    worker.send(P.WORK_COMPLETE, assigned.args[0], b"")
    client.lose()
    worker.lose()
    assert rig.engine.inspection.leftovers() == {}


def test_nothing_is_left_of_peers_that_are_gone(rig: ServerRig) -> None:
    """What was counted for peers is counted out when they go, and no timer runs on."""
    peers = [rig.connect() for _ in range(5)]
    for peer in peers:
        begin(peer, 2 * MB)
        peer.send(P.CAN_DO, b"f")
    for peer in peers:
        peer.lose()
    rig.clock.advance(0)
    assert rig.engine.inspection.leftovers() == {}
    assert rig.clock.getDelayedCalls() == []


def test_server_that_stops_with_full_memory_looks_no_more(rig: ServerRig) -> None:
    """Jobs that stay in memory when the server stops keep no timer running, whatever comes, and when."""
    client = rig.connect()
    for _ in range(11):
        client.send(P.SUBMIT_JOB_BG, b"f", b"", bytes(MB))
    stopped = rig.stop()
    begin(client, 1000)  # it was underway
    rig.clock.advance(1)
    client.lose()
    assert stopped.called
    late = rig.connect()  # it had been accepted
    begin(late, 1000)
    late.lose()
    rig.clock.advance(0)
    assert rig.clock.getDelayedCalls() == []


# Output that is not taken.


def test_one_large_packet_excuses_nothing_after_it(unsent: dict[object, int]) -> None:
    """A packet beyond the limit may wait; once it is sent, what comes after it may not exceed the limit."""
    rig = ServerRig(limits=ConnectionLimits(max_output_bytes=100_000))
    peer = rig.connect()

    def send(size: int, waits: int) -> None:
        unsent[peer.transport] = waits
        peer.protocol.send([bytes(size)])

    send(500_000, 500_000)
    send(10, 500_010)
    send(10, 0)
    send(10, 99_000)
    assert not is_closed(peer)
    send(10, 101_000)
    assert is_closed(peer)


def test_output_of_a_turn_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many packets at once, only those up to the limit are joined to be sent."""
    monkeypatch.setattr(connection_module, "unsent_bytes", lambda transport: len(transport.value()))
    rig = ServerRig(limits=ConnectionLimits(max_output_bytes=100_000))
    peer = rig.connect()
    peer.protocol.send([bytes(40_000)] * 100)
    assert is_closed(peer)
    assert len(peer.transport.value()) < 200_000


# What waits for the store.


def test_workloads_that_wait_for_the_store_are_bounded() -> None:
    """A peer whose unsaved jobs are large is not read until half of them are saved."""
    store = SlowStore()
    rig = ServerRig(store=store, limits=ConnectionLimits(max_unsaved_bytes=MB))
    peer = rig.connect()
    peer.send(P.SUBMIT_JOB_BG, b"f", b"", bytes(MB))
    assert is_read(peer)
    peer.send(P.SUBMIT_JOB_BG, b"f", b"", b"1")
    assert not is_read(peer)
    rig.clock.advance(0)
    while not is_read(peer):
        store.finish()
        rig.clock.advance(0)
    peer.send(P.SUBMIT_JOB_BG, b"f", b"", b"2")
    assert is_read(peer)


def test_peer_whose_jobs_were_saved_is_not_read_beyond_the_budget() -> None:
    """A peer that is not read for two reasons is not read until both are gone."""
    store = SlowStore()
    rig = ServerRig(
        store=store, settings=EngineSettings(max_memory=LIMIT), limits=ConnectionLimits(max_unsaved_jobs=1)
    )
    first, peer = rig.connect(), rig.connect()
    begin(first, 9 * MB)
    for _ in range(2):
        peer.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    begin(peer, 1 * MB)
    for _ in range(2):
        rig.clock.advance(0)
        store.finish()
    assert [packet.type for packet in peer.received()] == [P.JOB_CREATED] * 2
    assert not is_read(peer)
    first.lose()
    rig.clock.advance(0.1)
    assert is_read(peer)


def test_submissions_that_join_a_job_that_is_being_saved_are_bounded() -> None:
    """A peer whose submissions all join one job that is being saved is not read in the end."""
    store = SlowStore()
    rig = ServerRig(store=store, limits=ConnectionLimits(max_unsaved_jobs=10))
    first, peer = rig.connect(), rig.connect()
    first.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    for _ in range(10):
        peer.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    assert is_read(peer)
    peer.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    assert not is_read(peer)
    rig.clock.advance(0)
    store.finish()
    assert is_read(peer)
    assert len(peer.received()) == 11


# How much there is.


def files(root: Path, own: str, limits: dict[str, str]) -> tuple[Path, Path]:
    """Write the files that Linux shows of control groups."""
    (root / "own").write_text(own)
    for name, text in limits.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / "cgroup", root / "own"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": "1000000\n"}, 1_000_000),
        ("0::/a/b\n", {"memory.max": "max\n", "a/memory.max": "7000\n", "a/b/memory.max": "max\n"}, 7_000),
        ("0::/somewhere/on/the/host\n", {"memory.max": "5000\n"}, 5_000),
        ("4:cpu:/x\n3:memory:/a\n", {"memory/a/memory.limit_in_bytes": "4096\n"}, 4_096),
        ("3:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {}, None),
    ],
    ids=["container", "nested", "path of the host", "version 1", "version 1 without limit", "none"],
)
def test_memory_of_a_control_group(
    tmp_path: Path, own: str, limits: dict[str, str], expected: int | None
) -> None:
    """The limit of the control group counts, or that of one around it, if it is less than the machine has."""
    machine = memory_bytes(tmp_path, tmp_path / "missing")
    assert memory_bytes(*files(tmp_path, own, limits)) == (machine if expected is None else expected)
