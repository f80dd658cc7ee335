"""The table in compatibility.md names tests and differences that exist; its rows about the service."""

from __future__ import annotations

import ast
import re
import socket
from functools import cache

import pytest
from twisted.internet.task import Clock

from gearman_twisted.engine.outbox import Shutdown
from gearman_twisted.server.service import JobServerService
from gearman_twisted.server.settings import default_settings
from gearman_twisted.store.memory import MemoryStore
from gearman_twisted.wire.constants import PacketType
from tests.kit.paths import ROOT, doc_page
from tests.kit.server_rig import Peer

P = PacketType


def rows_of(page: str) -> list[tuple[str, list[str]]]:
    """The rows of all tables, each with the section that it stands in; heads and rules left out."""
    rows: list[tuple[str, list[str]]] = []
    section = ""
    lines = page.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("#"):
            section = line.lstrip("# ")
        is_cell = line.startswith("|") and not line.startswith("|---") and not following.startswith("|---")
        if is_cell:
            rows.append((section, [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]))
    return rows


def anchor(heading: str) -> str:
    """What a link to a heading ends with."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@cache
def names_in(path: str) -> frozenset[str]:
    """The tests of a file, those in classes as ``Class::test``."""
    names: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = (m.name for m in node.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef))
            names.update(f"{node.name}::{name}" for name in methods)
    return frozenset(names)


ROWS = rows_of(doc_page("compatibility.md").read_text())


@pytest.mark.parametrize(
    ("section", "cells"), ROWS, ids=[f"{section}: {cells[0]}" for section, cells in ROWS]
)
def test_row_has_its_tests_and_its_difference(section: str, cells: list[str]) -> None:
    """Each row has a verdict and at least one test that exists; what differs stands in the named section."""
    assert len(cells) == 3, (section, cells)
    _, verdict, tests = cells
    if verdict not in {"yes", "2.0"}:
        link = re.fullmatch(r"\[differs\]\(([\w./-]+\.md)#([\w-]+)\)", verdict)
        assert link, verdict
        page = (doc_page("compatibility.md").parent / link[1]).read_text()
        sections = {anchor(heading) for heading, _ in rows_of(page)}
        sections |= {anchor(heading) for heading in re.findall(r"^#+ (.*)", page, re.MULTILINE)}
        assert link[2] in sections
    for test in tests.split(", "):
        named = re.fullmatch(r"`(tests/[\w/]+\.py)::([\w:]+)`", test)
        assert named, test
        assert named[2].split("::")[-1].startswith("test_")
        assert (ROOT / named[1]).exists(), named[1]
        assert named[2] in names_in(named[1]), test


def test_rows_are_not_repeated() -> None:
    """No section says one thing twice."""
    keys = [(section, cells[0]) for section, cells in ROWS]
    assert len(set(keys)) == len(keys)
    assert len(keys) > 490


def test_sections_can_be_linked() -> None:
    """A link within the page leads to a heading of it."""
    page = doc_page("compatibility.md").read_text()
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", page)) <= headings


# Rows that need more than the engine.


def test_handles_have_the_name_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is told no prefix takes ``H:`` and the host's name."""
    monkeypatch.setattr(socket, "gethostname", lambda: "box.example")
    assert default_settings().handle_prefix == b"H:box.example"


def graceful(*, with_job: bool) -> tuple[Peer, list[str]]:
    """A peer of a server that was told to end gracefully, and what ended."""
    ended: list[str] = []
    clock = Clock()
    clock.advance(1_000_000)
    service = JobServerService(clock, [], MemoryStore(), on_shutdown=lambda: ended.append("server"))
    service.startService()
    peer = Peer(service._factory, clock)
    if with_job:
        peer.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"1000005", b"")
        assert [packet.type for packet in peer.received()] == [P.JOB_CREATED]
    service.shutdown(Shutdown.GRACEFUL)
    return peer, ended


def test_graceful_end_without_jobs_is_at_once() -> None:
    """With nothing to wait for, a graceful end is as quick as any."""
    _, ended = graceful(with_job=False)
    assert ended == ["server"]


def test_graceful_end_waits_for_the_last_job() -> None:
    """New jobs are taken until the end, which comes with the last job, scheduled ones included."""
    peer, ended = graceful(with_job=True)
    peer.send(P.CAN_DO, b"f")
    peer.send(P.SUBMIT_JOB, b"f", b"", b"new")
    [created] = peer.received()
    peer.send(P.GRAB_JOB)
    [assigned] = peer.received()
    assert assigned.args[0] == created.args[0]
    peer.send(P.WORK_COMPLETE, created.args[0], b"")
    peer.received()
    assert ended == []
    peer.clock.advance(5)
    peer.send(P.GRAB_JOB)
    [assigned] = peer.received()
    peer.send(P.WORK_COMPLETE, assigned.args[0], b"")
    peer.received()
    assert ended == ["server"]
