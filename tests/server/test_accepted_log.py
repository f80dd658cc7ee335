"""The line that gearmand logs at level NOTICE for each submission that it accepts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, PacketType
from tests.commands.test_gearmand import Foreground
from tests.kit.gearmand import Gearmand
from tests.kit.servers import WirePeer

P = PacketType
# What is submitted, and what stands in the line; None where it is refused.
SUBMISSIONS: list[tuple[PacketType, tuple[bytes, ...], str | None]] = [
    (P.SUBMIT_JOB, (b"f", b"u1", b"w"), "accepted,f,u1,0"),
    (P.SUBMIT_JOB_BG, (b"f", b"", b"w"), "accepted,f,,0"),
    (P.SUBMIT_JOB_HIGH_BG, (b"f", b"u2", b"w"), "accepted,f,u2,0"),
    (P.SUBMIT_JOB_EPOCH, (b"f", b"u3", b"2000000000", b"w"), "accepted,f,u3,2000000000"),
    (P.SUBMIT_JOB, (b"f", b"u1", b"w"), "accepted,f,u1,0"),
    (P.SUBMIT_JOB_BG, (b"f", b"u1", b"w"), "accepted,f,u1,0"),
    (P.SUBMIT_JOB_BG, (b"f", b"-", b"w"), "accepted,f,-,0"),
    (P.SUBMIT_JOB_BG, (b"f", b"u" * 65, b"w"), None),
    (P.SUBMIT_REDUCE_JOB, (b"f", b"u4", b"reducer", b"", b"w"), "accepted,f,u4,reducer"),
    (P.SUBMIT_REDUCE_JOB_BACKGROUND, (b"f", b"u5", b"reducer", b"", b"w"), "accepted,f,u5,reducer"),
]
EXPECTED = [line for _, _, line in SUBMISSIONS if line is not None]


def submit_all(port: int) -> None:
    """Submit one after the other, and wait for the answers."""
    with WirePeer(port) as peer:
        for type_, arguments, line in SUBMISSIONS:
            answer = peer.ask(type_, *arguments)
            assert answer is not None
            assert (answer.type == P.JOB_CREATED) == (line is not None)


def accepted_in(log: str) -> list[str]:
    """What is said of jobs at level NOTICE, without the time and, in gearmand's, the place in its source."""
    return [
        "accepted," + line.partition("accepted,")[2].partition(" -> ")[0]
        for line in log.splitlines()
        if line.startswith(" NOTICE ") and "accepted," in line
    ]


def test_lines_of_debians_gearmand(tmp_path: Path) -> None:
    """Debian's gearmand logs what is expected of ours."""
    original = Gearmand(tmp_path, "--verbose", "NOTICE", "-P", str(tmp_path / "pid"))
    try:
        submit_all(original.port)
        original.end()
    finally:
        original.close()
    assert accepted_in((tmp_path / "gearmand.log").read_text()) == EXPECTED


@pytest.mark.parametrize("store", ["memory:", "sqlite:jobs.db"])
def test_lines_of_ours(tmp_path: Path, store: str) -> None:
    """Ours logs the same, whether or not a submission waits for its save."""
    with Foreground(tmp_path, "--verbose", "NOTICE", "--store", store) as server:
        submit_all(server.port)
        assert server.end(signal.SIGTERM) == 0
    assert accepted_in(server.printed) == EXPECTED


def test_names_make_no_lines(tmp_path: Path) -> None:
    """A name with a line feed or other bytes stays in its line."""
    with Foreground(tmp_path, "--verbose", "NOTICE") as server:
        with WirePeer(server.port) as peer:
            assert peer.ask(P.SUBMIT_JOB_BG, b"f\n NOTICE forged", b"\x1b\x80", b"w") is not None
        assert server.end(signal.SIGTERM) == 0
    assert accepted_in(server.printed) == ["accepted,f? NOTICE forged,?\ufffd,0"]
    assert server.printed.count("\n") == 1


@pytest.mark.parametrize("level", ["WARNING", "ERROR"])
def test_no_lines_below_notice(tmp_path: Path, level: str) -> None:
    """At lower levels nothing is logged of jobs."""
    with Foreground(tmp_path, "--verbose", level) as server:
        submit_all(server.port)
        assert server.end(signal.SIGTERM) == 0
    assert "accepted" not in server.printed


def engine(*, notes_accepted: bool) -> JobServer:
    """An engine with a durable store and one peer, whose number is 1."""
    made = JobServer(EngineSettings(notes_accepted=notes_accepted), durable=True, last_id=0)
    made.connect(1, "peer", 0.0)
    return made


def submit(server: JobServer, type_: PacketType) -> list[tuple[bytes, bytes, bytes]] | None:
    """What is noted when a job is submitted."""
    packets = Decoder(REQ).feed(encode(REQ, type_, b"f", b"u", b"w"))
    return server.receive(1, packets, 0.0).accepted


def test_what_the_store_refuses_is_not_noted() -> None:
    """A submission is noted when the store has its job, once for each that joined; not when it failed."""
    server = engine(notes_accepted=True)
    assert [submit(server, P.SUBMIT_JOB_BG), submit(server, P.SUBMIT_JOB_BG)] == [None, None]
    assert server.save_failed([1], "disk full", 0.0).accepted is None
    assert [submit(server, P.SUBMIT_JOB_BG), submit(server, P.SUBMIT_JOB_BG)] == [None, None]
    assert server.saved([2], 0.0).accepted == [(b"f", b"u", b"0")] * 2


def test_nothing_is_noted_unless_asked_for() -> None:
    """Without the setting the Outbox has no notes, so a server at a lower level does nothing for them."""
    server = engine(notes_accepted=False)
    assert submit(server, P.SUBMIT_JOB) is None
    assert server.saved([1], 0.0).accepted is None
