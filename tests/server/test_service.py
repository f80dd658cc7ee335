"""The service over real sockets, in this process's reactor."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread

from gearman_twisted.errors import StoreError
from gearman_twisted.server.listening import ListeningEndpoint
from gearman_twisted.server.service import JobServerService
from gearman_twisted.server.settings import ConnectionLimits
from gearman_twisted.store import open_store
from gearman_twisted.store.contract import IJobStore, StoredJob
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.server_rig import SlowStore
from tests.kit.servers import WirePeer

reactor: Any = installed_reactor


def loopback(port: int = 0) -> ListeningEndpoint:
    return ListeningEndpoint(reactor, "127.0.0.1", port, backlog=50)


def make(store: IJobStore, limits: ConnectionLimits | None = None) -> JobServerService:
    return JobServerService(reactor, [loopback()], store, limits=limits)


def port_of(service: JobServerService) -> int:
    port: int = service.addresses[0].port  # type: ignore[attr-defined]
    return port


@pytest_twisted.ensureDeferred
async def test_stored_jobs_are_served_after_a_restart(tmp_path: Path) -> None:
    """A background job that was acknowledged runs after the service was stopped and started anew."""
    url = f"sqlite:{tmp_path / 'jobs.db'}"
    service = make(open_store(url, reactor))
    service.startService()
    assert await service.when_ready() == 0

    def submit() -> bytes:
        with WirePeer(port_of(service)) as peer:
            created = peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"u", b"work")
            assert created is not None
            assert created.type == PacketType.JOB_CREATED
            return created.args[0]

    handle = await deferToThread(submit)
    await service.stopService()

    again = make(open_store(url, reactor))
    again.startService()
    assert await again.when_ready() == 1

    def grab() -> tuple[bytes, bytes]:
        with WirePeer(port_of(again)) as peer:
            peer.send(PacketType.CAN_DO, b"f")
            assigned = peer.ask(PacketType.GRAB_JOB)
            assert assigned is not None
            return assigned.args[0], assigned.args[2]

    assert await deferToThread(grab) == (handle, b"work")
    await again.stopService()


@pytest_twisted.ensureDeferred
async def test_a_peer_that_does_not_read_is_closed() -> None:
    """Output that a peer does not read is not kept beyond max_output_bytes; others are served on."""
    service = make(open_store("memory:", reactor), ConnectionLimits(max_output_bytes=1 << 20))
    service.startService()
    await service.when_ready()

    def flood() -> None:
        with WirePeer(port_of(service)) as peer, WirePeer(port_of(service)) as other:
            # What the two kernels' buffers take of it is not the server's to keep.
            with pytest.raises(ConnectionError):
                peer.socket.sendall(encode(REQ, PacketType.ECHO_REQ, bytes(1 << 17)) * 2000)
            assert other.ask(PacketType.ECHO_REQ, b"still here") is not None

    await deferToThread(flood)
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_one_packet_may_be_larger_than_the_limit() -> None:
    """A peer that is still reading a packet larger than max_output_bytes gets what comes behind it."""
    service = make(open_store("memory:", reactor), ConnectionLimits(max_output_bytes=1 << 20))
    service.startService()
    await service.when_ready()

    def ask() -> None:
        with WirePeer(port_of(service)) as peer, WirePeer(port_of(service)) as other:
            sent = [bytes(1 << 25), b"1", b"2", b"3"]
            for data in sent:
                peer.send(PacketType.ECHO_REQ, data)
                # Answered in another turn of the server.
                assert other.ask(PacketType.ECHO_REQ, b"") is not None
            assert [peer.receive() for _ in sent] == [Packet(PacketType.ECHO_RES, [data]) for data in sent]

    await deferToThread(ask)
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_a_taken_port_is_an_error_and_lets_go_of_the_others() -> None:
    """If one of several ports is taken, listening fails and none of them is kept."""
    with socket.socket() as taken, socket.socket() as free:
        for each in (taken, free):
            each.bind(("127.0.0.1", 0))
        taken.listen()
        free_port = free.getsockname()[1]
        free.close()
        service = JobServerService(
            reactor,
            [loopback(free_port), loopback(taken.getsockname()[1])],
            open_store("memory:", reactor),
        )
        with pytest.raises(CannotListenError):
            service.listen()
        await deferLater(reactor, 0)  # Twisted closes its ports in the next turn
        with pytest.raises(ConnectionRefusedError):
            await deferToThread(socket.create_connection, ("127.0.0.1", free_port))


@pytest_twisted.ensureDeferred
async def test_a_store_that_cannot_be_opened_is_told_to_whoever_waits(tmp_path: Path) -> None:
    """when_ready fails with the store's error, and the service can still be stopped."""
    path = tmp_path / "not.db"
    path.write_bytes(b"this is not a database, but it is long enough to look like something" * 10)
    service = make(open_store(f"sqlite:{path}", reactor))
    service.startService()
    with pytest.raises(StoreError, match=r"not\.db"):
        await service.when_ready()
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_stop_before_start_and_twice() -> None:
    """A service that was never started can be stopped, also twice."""
    service = make(open_store("memory:", reactor))
    service.listen()
    await service.stopService()
    await service.stopService()
    assert service.addresses == []


class LongStore(SlowStore):
    """A store whose replay goes on until the test ends it."""

    def __init__(self) -> None:
        super().__init__()
        self.next_page: Deferred[None] = Deferred()

    def replay(self, add: Callable[[Sequence[StoredJob]], None]) -> Deferred[int]:
        """Add a job for each page."""
        return Deferred.fromCoroutine(self._replay(add))

    async def _replay(self, add: Callable[[Sequence[StoredJob]], None]) -> int:
        for number in range(1, 4):
            await self.next_page
            self.next_page = Deferred()
            add([StoredJob(number, b"H:x:%d" % number, b"f", b"", b"w", 1)])
        return 3


def ask_text(port: int, line: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
        peer.sendall(line)
        return peer.recv(1000)


@pytest_twisted.ensureDeferred
async def test_operators_are_answered_while_stored_jobs_are_read() -> None:
    """The text command ``ready`` tells when the stored jobs are there, and how many were read so far."""
    store = LongStore()
    service = make(store)
    service.startService()
    for number in range(3):
        answer = await deferToThread(ask_text, port_of(service), b"ready\n")
        assert answer == b"ERR LOADING The+stored+jobs+are+being+read,+%d+so+far\r\n" % number
        store.next_page.callback(None)
    assert await service.when_ready() == 3
    assert await deferToThread(ask_text, port_of(service), b"ready\n") == b"OK\r\n"
    await service.stopService()


@pytest_twisted.ensureDeferred
async def test_stop_while_stored_jobs_are_read() -> None:
    """A service that is stopped in the middle of its start ends when the page is there, without an error."""
    store = LongStore()
    service = make(store)
    service.startService()
    ready = service.when_ready()
    store.next_page.callback(None)
    stopped = service.stopService()
    store.next_page.callback(None)
    await stopped
    assert not ready.called
