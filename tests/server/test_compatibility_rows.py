"""Rows of compatibility.md that need a store, sockets or processes, and that no other test holds."""

from __future__ import annotations

import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.threads import deferToThread

from gearman_twisted.commands.gearmand.options import parse
from gearman_twisted.commands.gearmand.server import Gearmand
from gearman_twisted.server.listening import ListeningEndpoint
from gearman_twisted.server.service import JobServerService
from gearman_twisted.store import open_store
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.servers import TwistdGearman, WirePeer

P = PacketType
reactor: Any = installed_reactor

# What broke gearmand's stores, each with its function, unique and workload.
HARD_TO_STORE = [
    (b"f", b"", b"one of two without a unique"),
    (b"f", b"", b"the other one"),
    (b"f", b"-", b"one with a dash"),
    (b"f", b"-", b"another one with a dash"),
    (b"f", b"empty", b""),
    (b"f", b"binary", bytes(range(256)) * 2),
    (b"a-function-with-hyphens", b"a-unique-with-hyphens", b"x"),
    (b"f" * 8191, b"u" * 64, b"x"),
    (b"", b"no function", b"x"),
]


def drain(peer: WirePeer, *functions: bytes) -> Iterator[Packet]:
    """Does all jobs that there are now; yields how each was assigned."""
    for function in functions:
        peer.send(P.CAN_DO, function)
    while (assigned := peer.ask(P.GRAB_JOB_UNIQ)) is not None and assigned.type == P.JOB_ASSIGN_UNIQ:
        peer.send(P.WORK_COMPLETE, assigned.args[0], b"")
        yield assigned


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_whatever_was_stored_comes_back(tmp_path: Path, number: signal.Signals) -> None:
    """Jobs that gearmand's stores lose, mix up or stumble over come back as they were, handles included."""
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as client:
        stored: list[Packet] = []
        for function, unique, workload in HARD_TO_STORE:
            created = client.ask(P.SUBMIT_JOB_BG, function, unique, workload)
            assert created is not None
            stored.append(Packet(P.JOB_ASSIGN_UNIQ, [created.args[0], function, unique, workload]))
        server.end(number)
    with TwistdGearman(tmp_path) as server, WirePeer(server.port) as worker:
        found = list(drain(worker, *{function for function, *_ in HARD_TO_STORE}))
    assert sorted(found, key=repr) == sorted(stored, key=repr)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_running_and_queued_jobs_come_back(tmp_path: Path, number: signal.Signals) -> None:
    """Background jobs that ran or waited come back by priority, a foreground job and one that ended do not.

    One that is scheduled for later waits on.
    """
    later = b"%d" % (time.time() + 1_000_000)
    with TwistdGearman(tmp_path, "--job-retries=1") as server, WirePeer(server.port) as peer:
        peer.send(P.CAN_DO, b"f")
        for workload in (b"ended", b"was running"):
            assert peer.ask(P.SUBMIT_JOB_BG, b"f", b"", workload) is not None
            assigned = peer.ask(P.GRAB_JOB)
            assert assigned is not None
            assert assigned.args[2] == workload
            if workload == b"ended":
                peer.send(P.WORK_COMPLETE, assigned.args[0], b"")
        # What is saved after the end of a job is not on the disk before that end is.
        for type_, args in (
            (P.SUBMIT_JOB_LOW_BG, [b"low"]),
            (P.SUBMIT_JOB_BG, [b"normal"]),
            (P.SUBMIT_JOB_HIGH_BG, [b"high"]),
            (P.SUBMIT_JOB, [b"foreground"]),
            (P.SUBMIT_JOB_EPOCH, [later, b"later"]),
        ):
            assert peer.ask(type_, b"f", args[-1], *args) is not None
        server.end(number)
    with TwistdGearman(tmp_path, "--job-retries=1") as server, WirePeer(server.port) as worker:
        ran = [assigned.args[3] for assigned in drain(worker, b"f")]
        scheduled = worker.text(b"show scheduled", b".\n")
    assert ran == [b"high", b"was running", b"normal", b"low"]
    assert scheduled.split(b"\t")[1:4] == [b"f", b"later", later]


# Sockets.


@pytest_twisted.ensureDeferred
async def test_options_of_gearmand_are_on_its_sockets() -> None:
    """The backlog and the times of keepalive are those of the options; the default backlog is 1024."""
    for words, backlog, times in (
        ([], 1024, None),
        (["-b", "7"], 7, None),
        (["--keepalive-idle=11", "--keepalive-interval=12", "--keepalive-count=13"], 1024, (11, 12, 13)),
    ):
        options = parse(["--config-file=", "-L", "127.0.0.1", "-p", "0", *words], {})
        service = Gearmand(options, lambda: None)._make_service(open_store("memory:", reactor))
        service.listen()
        ports: Any = service._ports
        [listening] = [port.socket for port in ports]
        # Of a socket that listens, the kernel has the backlog where other sockets have this count.
        unacked_and_sacked = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)[24:]
        assert struct.unpack("II", unacked_and_sacked)[1] == min(backlog, _most_backlog())
        if times is not None:
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert tuple(listening.getsockopt(socket.IPPROTO_TCP, name) for name in names) == times
        await service.stopService()


def _most_backlog() -> int:
    return int(Path("/proc/sys/net/core/somaxconn").read_text())


@pytest_twisted.ensureDeferred
async def test_connections_are_prompt_and_kept_alive() -> None:
    """An accepted connection has TCP_NODELAY and SO_KEEPALIVE."""
    endpoint = ListeningEndpoint(reactor, "127.0.0.1", 0, backlog=5)
    service = JobServerService(reactor, [endpoint], open_store("memory:", reactor))
    service.startService()
    await service.when_ready()
    port: int = service.addresses[0].port  # type: ignore[attr-defined]
    peer = await deferToThread(WirePeer, port)
    await deferToThread(peer.ask, P.ECHO_REQ, b"")
    (accepted,) = service._peers._peers.values()
    transport: Any = accepted.transport  # type: ignore[attr-defined]
    assert transport.getTcpNoDelay()
    assert transport.getTcpKeepAlive()
    peer.socket.close()
    await service.stopService()
