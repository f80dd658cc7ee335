"""The server in memory: connections, peers, host and group commit under a clock."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.errors import StoreError, StoreUnavailable
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.server_rig import LoadingStore, Peer, ServerRig, SlowStore


class ServerTests(SynchronousTestCase):
    """What the rim promises."""

    def make(self, *, durable: bool = True, limits: ConnectionLimits | None = None) -> None:
        """A factory that serves."""
        self.store = SlowStore()
        self.rig = ServerRig(self.store if durable else None, limits=limits)
        self.clock, self.factory = self.rig.clock, self.rig.factory

    def test_replies_of_one_read_are_one_write(self) -> None:
        """All that one read brings about is sent to a peer in one piece."""
        self.make(durable=False)
        peer = Peer(self.factory, self.clock)
        writes: list[bytes] = []
        self.patch(peer.transport, "write", writes.append)
        peer.protocol.dataReceived(encode(REQ, PacketType.ECHO_REQ, b"a") * 50)
        self.clock.advance(0)
        self.assertEqual(writes, [encode(RES, PacketType.ECHO_RES, b"a") * 50])

    def test_writes_of_one_turn_are_gathered(self) -> None:
        """What several peers bring about for another one in one turn reaches it in one piece."""
        self.make(durable=False)
        client, *workers = (Peer(self.factory, self.clock) for _ in range(4))
        for worker in workers:
            worker.send(PacketType.CAN_DO, b"f")
            client.send(PacketType.SUBMIT_JOB, b"f", b"", b"w")
            worker.send(PacketType.GRAB_JOB)
        handles = [worker.received()[0].args[0] for worker in workers]
        client.received()
        writes: list[bytes] = []
        self.patch(client.transport, "write", writes.append)
        for worker, handle in zip(workers, handles, strict=True):
            worker.send(PacketType.WORK_COMPLETE, handle, b"done")
        self.clock.advance(0)
        self.assertEqual(len(writes), 1)
        self.assertEqual(len(Decoder(RES).feed(writes[0])), 3)

    def test_background_job_is_acknowledged_after_its_save(self) -> None:
        """JOB_CREATED for a background job goes out when the store has it, and not before."""
        self.make()
        peer = Peer(self.factory, self.clock)
        peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        self.assertEqual(peer.received(), [])
        self.store.finish()
        self.assertEqual([packet.type for packet in peer.received()], [PacketType.JOB_CREATED])

    def test_saves_that_arrive_during_a_commit_share_the_next(self) -> None:
        """While a commit runs, the jobs of all connections gather for the next one."""
        self.make()
        peers = [Peer(self.factory, self.clock) for _ in range(10)]
        for peer in peers:
            peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        self.assertEqual([len(saves) for saves, _, _ in self.store.commits], [1])
        self.store.finish()
        self.assertEqual([len(saves) for saves, _, _ in self.store.commits], [1, 9])
        self.store.finish()
        for peer in peers:
            self.assertEqual([packet.type for packet in peer.received()], [PacketType.JOB_CREATED])

    def test_a_stalled_store_does_not_stall_foreground_jobs(self) -> None:
        """Jobs of other connections go through while a commit hangs."""
        self.make()
        stalled, client, worker = (Peer(self.factory, self.clock) for _ in range(3))
        stalled.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        worker.send(PacketType.CAN_DO, b"g")
        client.send(PacketType.SUBMIT_JOB, b"g", b"", b"w")
        worker.send(PacketType.GRAB_JOB)
        (assigned,) = worker.received()
        worker.send(PacketType.WORK_COMPLETE, assigned.args[0], b"done")
        self.assertEqual(client.received()[-1].args[1], b"done")
        self.assertEqual(stalled.received(), [])

    def test_workload_beyond_the_store_is_refused(self) -> None:
        """A job that is too large for the store is refused with its name, and is in no commit with others."""
        self.store = SlowStore()
        self.store.max_workload_bytes = 10
        peer = ServerRig(self.store).connect()
        for size in (10, 11, 9):
            peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w" * size)
        self.store.finish()
        self.store.finish()
        first, error, last = peer.received()
        self.assertEqual((first.type, last.type), (PacketType.JOB_CREATED, PacketType.JOB_CREATED))
        self.assertEqual((error.type, error.args[0]), (PacketType.ERROR, b"QUEUE_ERROR"))
        self.assertIn(b"slow takes workloads of up to 10 bytes, and this one has 11", error.args[1])
        self.assertEqual([len(job.workload) for saves, _, _ in self.store.commits for job in saves], [10, 9])

    def test_failed_save_is_told(self) -> None:
        """A job that the store refused is refused to the client, with the reason, and never runs."""
        self.make()
        peer, worker = Peer(self.factory, self.clock), Peer(self.factory, self.clock)
        peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        self.store.finish(StoreError("too large"))
        (error,) = peer.received()
        self.assertEqual((error.type, error.args[0]), (PacketType.ERROR, b"QUEUE_ERROR"))
        self.assertIn(b"too large", error.args[1])
        worker.send(PacketType.CAN_DO, b"f")
        worker.send(PacketType.GRAB_JOB)
        self.assertEqual([packet.type for packet in worker.received()], [PacketType.NO_JOB])

    def test_unreachable_store_is_waited_for(self) -> None:
        """A submission waits while the store is gone, others are served, and is answered when it is back."""
        self.make()
        peer, other = Peer(self.factory, self.clock), Peer(self.factory, self.clock)
        peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        for _ in range(4):
            self.store.finish(StoreUnavailable("restarting"))
            self.assertEqual(peer.received(), [])
            other.send(PacketType.ECHO_REQ, b"alive")
            self.assertEqual([packet.args for packet in other.received()], [[b"alive"]])
            self.clock.advance(5)
        self.store.finish()
        self.assertEqual([packet.type for packet in peer.received()], [PacketType.JOB_CREATED])

    def test_unreachable_store_is_not_waited_for_without_end(self) -> None:
        """After save_timeout the submission is refused, and nothing runs from it."""
        self.make()
        peer = Peer(self.factory, self.clock)
        peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        answers: list[Packet] = []
        while not answers:
            self.store.finish(StoreUnavailable("gone"))
            self.clock.advance(5)
            answers = peer.received()
        self.assertEqual([packet.args[0] for packet in answers], [b"QUEUE_ERROR"])
        self.assertIn(b"gone", answers[0].args[1])
        saves, forgets, _ = self.store.commits[-1]
        self.assertEqual(len(self.store.commits[0][0]), 1)
        self.assertEqual((saves, forgets), ([], [self.store.commits[0][0][0].id]))

    def test_a_flooding_peer_is_not_read_until_its_jobs_are_saved(self) -> None:
        """Submits beyond max_unsaved_jobs stop the reading of that peer, until half of them are saved."""
        self.make(limits=ConnectionLimits(max_unsaved_jobs=10))
        peer, other = Peer(self.factory, self.clock), Peer(self.factory, self.clock)
        for _ in range(11):
            peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        self.assertEqual(peer.transport.producerState, "paused")
        self.assertEqual(other.transport.producerState, "producing")
        self.store.finish()
        self.assertEqual(peer.transport.producerState, "paused")
        self.store.finish()
        self.assertEqual(peer.transport.producerState, "producing")

    def test_a_flood_of_cancels_waits_for_the_store(self) -> None:
        """Each ``cancel`` waits for its forget; too many stop the reading, as unsaved jobs do."""
        self.make(limits=ConnectionLimits(max_unsaved_jobs=10))
        client, worker, operator = (Peer(self.factory, self.clock) for _ in range(3))
        client.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        self.store.finish()
        [created] = client.received()
        worker.send(PacketType.CAN_DO, b"f")
        worker.send(PacketType.GRAB_JOB)
        for _ in range(11):
            operator.protocol.dataReceived(b"cancel job %b\n" % created.args[0])
        self.assertEqual(operator.transport.producerState, "paused")
        self.clock.advance(0)
        self.assertEqual(operator.transport.value(), b"")
        self.store.finish()
        self.clock.advance(0)
        self.assertEqual(operator.transport.value(), b"OK\r\n" * 11)
        self.assertEqual(operator.transport.producerState, "producing")

    def test_garbage_is_answered_and_closed(self) -> None:
        """A stream that makes no sense gets an ERROR, is closed, and harms nobody else."""
        self.make(durable=False)
        peer, other = Peer(self.factory, self.clock), Peer(self.factory, self.clock)
        peer.protocol.dataReceived(b"\0BAD" + b"x" * 20)
        (error,) = peer.received()
        self.assertEqual(error.type, PacketType.ERROR)
        self.assertTrue(peer.transport.disconnecting)
        other.send(PacketType.ECHO_REQ, b"a")
        self.assertEqual(len(other.received()), 1)

    def test_a_flood_of_lists_is_answered_turn_by_turn(self) -> None:
        """Lines whose answers are long are answered in order, but not all in one turn."""
        self.make(durable=False)
        client, flood = (Peer(self.factory, self.clock) for _ in range(2))
        for number in range(10):
            client.send(PacketType.SUBMIT_JOB_BG, b"f", b"%064d" % number, b"")
        writes: list[bytes] = []
        self.patch(flood.transport, "write", writes.append)
        lines = 5000
        flood.protocol.dataReceived(b"show unique jobs\n" * lines + b"version\n")
        self.assertEqual(flood.transport.producerState, "paused")
        self.clock.advance(0)
        self.assertGreaterEqual(len(writes), 3)
        self.assertLess(max(map(len, writes)), 1_100_000)
        answers = b"".join(writes)
        self.assertEqual(answers.count(b"\n.\n"), lines)
        self.assertTrue(answers.endswith(b"OK 0\n"))
        self.assertEqual(flood.transport.producerState, "producing")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_flood_of_a_peer_that_leaves_is_forgotten(self) -> None:
        """What a peer had asked for when it left is not answered any more."""
        self.make(durable=False)
        flood = Peer(self.factory, self.clock)
        flood.send(PacketType.SUBMIT_JOB_BG, b"f", b"u" * 64, b"")
        flood.protocol.dataReceived(b"show unique jobs\n" * 50_000)
        flood.lose()
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_jobs_are_waited_for_and_the_rest_is_answered(self) -> None:
        """While the stored jobs are read, text and echoes are answered, all else is when they are there."""
        store = LoadingStore()
        rig = ServerRig(store, settings=EngineSettings(handle_prefix=b"H:x"), clock=Clock())
        self.clock = rig.clock
        operator, worker, impatient = (rig.connect() for _ in range(3))
        store.add([StoredJob(7, b"H:x:7", b"f", b"", b"w", 1)])
        operator.protocol.dataReceived(b"ready\nstatus\ncancel job H:x:8\nversion\n")
        loading = b"ERR LOADING The+stored+jobs+are+being+read,+1+so+far\r\n"
        self.clock.advance(0)
        self.assertEqual(operator.transport.value(), loading + b"f\t1\t0\t0\n.\n")
        operator.transport.clear()
        worker.send(PacketType.ECHO_REQ, b"alive")
        worker.send(PacketType.CAN_DO, b"f")
        worker.send(PacketType.GRAB_JOB)
        impatient.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"never")
        impatient.lose()
        self.assertEqual([packet.type for packet in worker.received()], [PacketType.ECHO_RES])
        self.assertEqual(worker.transport.producerState, "paused")
        store.add([StoredJob(8, b"H:x:8", b"f", b"", b"x", 0)])
        store.loaded.callback(2)
        assigned = worker.received()
        self.assertEqual([packet.args for packet in assigned], [[b"H:x:7", b"f", b"w"]])
        store.finish()
        self.clock.advance(0)
        self.assertEqual(operator.transport.value(), b"OK\r\nOK 0\n")
        self.assertEqual(worker.transport.producerState, "producing")
        operator.transport.clear()
        operator.protocol.dataReceived(b"ready\nstatus\n")
        self.clock.advance(0)
        self.assertEqual(operator.transport.value(), b"OK\r\nf\t1\t1\t1\n.\n")

    def test_garbage_is_closed_while_jobs_are_read(self) -> None:
        """Who makes no sense is not kept until the stored jobs are there."""
        peer = ServerRig(LoadingStore()).connect()
        peer.protocol.dataReceived(b"\0XXX" + bytes(20))
        self.assertEqual([packet.type for packet in peer.received()], [PacketType.ERROR])
        self.assertTrue(peer.transport.disconnecting)

    def test_a_scheduled_job_wakes_a_worker_at_its_second(self) -> None:
        """The timer is set for the earliest deadline, and nothing is left of it when the server closes."""
        self.make(durable=False)
        client, worker = Peer(self.factory, self.clock), Peer(self.factory, self.clock)
        worker.send(PacketType.CAN_DO, b"f")
        worker.send(PacketType.PRE_SLEEP)
        client.send(PacketType.SUBMIT_JOB_EPOCH, b"f", b"", b"1000060", b"w")
        self.clock.advance(59)
        self.assertEqual(worker.received(), [])
        self.clock.advance(1)
        self.assertEqual([packet.type for packet in worker.received()], [PacketType.NOOP])
        self.rig.stop(1.0)
        client.lose()
        worker.lose()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_job_that_is_given_up_is_logged(self) -> None:
        """A job that is lost for good stands in the log as an error, with what it takes to find its owner."""
        rig = ServerRig(settings=EngineSettings(job_retries=1))
        client, worker = rig.connect(), rig.connect()
        client.send(PacketType.SUBMIT_JOB_BG, b"f", b"u", b"w")
        worker.send(PacketType.CAN_DO, b"f")
        worker.send(PacketType.GRAB_JOB)
        with capturedLogs() as events:
            worker.lose()
        [event] = [event for event in events if event["log_level"] is LogLevel.error]
        self.assertIn("gave up job H:localhost:1 of 'f', unique 'u': ", str(formatEvent(event)))

    def test_closing_answers_for_what_was_being_saved(self) -> None:
        """A server that stops finishes the commit and tells the client before it closes the connection."""
        self.make()
        peer = Peer(self.factory, self.clock)
        peer.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        closed: list[None] = []
        self.rig.stop().addCallback(closed.append)
        self.assertEqual(peer.transport.producerState, "paused")
        self.assertFalse(peer.transport.disconnecting)
        self.store.finish()
        self.assertEqual([packet.type for packet in peer.received()], [PacketType.JOB_CREATED])
        self.assertTrue(peer.transport.disconnecting)
        self.assertEqual(closed, [])
        peer.lose()
        self.assertEqual(closed, [None])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_closing_does_not_count_as_an_attempt(self) -> None:
        """A running job of a server that stops stays in the store, also when one attempt is the limit."""
        self.store = SlowStore()
        self.rig = ServerRig(self.store, settings=EngineSettings(job_retries=1))
        client, worker = self.rig.connect(), self.rig.connect()
        client.send(PacketType.SUBMIT_JOB_BG, b"f", b"", b"w")
        self.store.finish()
        worker.send(PacketType.CAN_DO, b"f")
        worker.send(PacketType.GRAB_JOB)
        self.rig.stop()
        worker.lose()
        client.lose()
        self.assertEqual([forgets for _, forgets, _ in self.store.commits], [[]])


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 5_000_000])
def test_large_results_arrive_whole(size: int) -> None:
    """A result of any size reaches the client as it was."""
    rig = ServerRig()
    client, worker = rig.connect(), rig.connect()
    data = bytes(index % 251 for index in range(256)) * (size // 256) + b"x" * (size % 256)
    client.send(PacketType.SUBMIT_JOB, b"f", b"", data)
    worker.send(PacketType.CAN_DO, b"f")
    worker.send(PacketType.GRAB_JOB)
    (assigned,) = worker.received()
    assert assigned.args[2] == data
    worker.send(PacketType.WORK_COMPLETE, assigned.args[0], data)
    assert client.received()[-1].args[1] == data
