"""A store that stands still holds up what waits for it, and nothing else."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.threads import deferToThread

from gearman_twisted.server.listening import ListeningEndpoint
from gearman_twisted.server.service import JobServerService
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.sql.sqlite import SQLiteFile
from gearman_twisted.store.sql.tables import SqlStore
from gearman_twisted.store.threaded import ThreadedStore
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.servers import PATIENCE, WirePeer

reactor: Any = installed_reactor
P = PacketType
JOBS = 300


class StallingStore(SqlStore):
    """A SQLite store whose thread stands still, in the middle of a save, until it is released."""

    def __init__(self, path: Path) -> None:
        super().__init__(SQLiteFile(path))
        self.is_stalled = threading.Event()
        self.is_released = threading.Event()

    def apply(self, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
        self.is_stalled.set()
        assert self.is_released.wait(4 * PATIENCE)
        super().apply(saves, forgets)


def expect(packet: Packet | None, type_: PacketType) -> list[bytes]:
    """The arguments of a packet that has to be of a type."""
    assert packet is not None
    assert packet.type == type_
    return packet.args


def run_foreground_jobs(port: int) -> None:
    """Some hundred jobs, each from its submit to its result, over connections of their own."""
    with WirePeer(port) as client, WirePeer(port) as worker:
        worker.send(P.CAN_DO, b"reverse")
        for number in range(JOBS):
            workload = b"job %d" % number
            handle = expect(client.ask(P.SUBMIT_JOB, b"reverse", b"", workload), P.JOB_CREATED)[0]
            assert expect(worker.ask(P.GRAB_JOB), P.JOB_ASSIGN) == [handle, b"reverse", workload]
            worker.send(P.WORK_COMPLETE, handle, workload[::-1])
            assert expect(client.receive(), P.WORK_COMPLETE) == [handle, workload[::-1]]


@pytest.fixture
def store(tmp_path: Path) -> StallingStore:
    return StallingStore(tmp_path / "jobs.db")


async def served(store: StallingStore, story: Callable[[int], None]) -> None:
    """Tell a story, in a thread, to a server with a store."""
    endpoint = ListeningEndpoint(reactor, "127.0.0.1", 0, backlog=50)
    service = JobServerService(reactor, [endpoint], ThreadedStore(store, reactor))
    service.startService()
    await service.when_ready()
    try:
        await deferToThread(story, service.addresses[0].port)  # type: ignore[attr-defined]
    finally:
        store.is_released.set()
        await service.stopService()


@pytest_twisted.ensureDeferred
async def test_foreground_jobs_do_not_wait_for_a_stalled_store(store: StallingStore) -> None:
    """While the store stands still, foreground jobs of other connections run from beginning to end.

    The client whose background job is being saved is answered when that is done, and not before.
    """

    def story(port: int) -> None:
        with WirePeer(port) as waiting:
            waiting.send(P.SUBMIT_JOB_BG, b"mail", b"", b"to be saved")
            assert store.is_stalled.wait(PATIENCE)
            run_foreground_jobs(port)
            assert select.select([waiting.socket], [], [], 0)[0] == []
            store.is_released.set()
            expect(waiting.receive(), P.JOB_CREATED)

    await served(store, story)


@pytest_twisted.ensureDeferred
async def test_background_jobs_wait_together_for_a_stalled_store(store: StallingStore) -> None:
    """Clients with background jobs for a stalled store are all answered once it goes on."""

    def story(port: int) -> None:
        peers = [WirePeer(port) for _ in range(20)]
        try:
            for number, peer in enumerate(peers):
                peer.send(P.SUBMIT_JOB_BG, b"mail", b"", b"%d" % number)
            assert store.is_stalled.wait(PATIENCE)
            run_foreground_jobs(port)
            assert select.select([peer.socket for peer in peers], [], [], 0)[0] == []
            store.is_released.set()
            handles = {expect(peer.receive(), P.JOB_CREATED)[0] for peer in peers}
            assert len(handles) == len(peers)
        finally:
            for peer in peers:
                peer.socket.close()

    await served(store, story)
