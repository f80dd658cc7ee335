"""The code of the worker guide does what the text around it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import Application, IService
from twisted.internet.defer import gatherResults

from gearman_twisted import GearmanClient, GearmanWorker
from gearman_twisted.errors import JobException, JobFailed
from tests.kit.gearmand import Gearmand
from tests.kit.paths import doc_page
from tests.kit.worker_rig import log_warnings

GUIDE = doc_page("worker.md")

logged = pytest.fixture(log_warnings)


def guide(address: str) -> tuple[GearmanWorker, IService]:
    """What is made by all code of the guide, in order, with a server in place of its own."""
    application = Application("guide")
    names: dict[str, Any] = {"application": application}
    for block in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        code = block.replace('["10.0.0.1:4730", "10.0.0.2:4730"]', repr(address))
        code = code.replace("tcp:10.0.0.1:4730", f"tcp:{address}")
        exec(compile(code, str(GUIDE), "exec"), names)
    return names["worker"], IService(application)


@pytest_twisted.ensureDeferred
async def test_guide_does_what_it_says(
    gearmand: Gearmand, no_calls_left: None, logged: list[object], tmp_path: Path
) -> None:
    """Each function of the guide gives what it promises."""
    _, service = guide(gearmand.address)
    service.startService()
    text = tmp_path / "text"
    text.write_text("written")
    async with GearmanClient(gearmand.address) as client:
        submit = client.submit
        results = await gatherResults(
            [
                submit("reverse", b"abc"),
                submit("quick", b"abc"),
                submit("upper", b"abc"),
                submit("patient", b"abc"),
                submit("blocking", bytes(text)),
                submit("report", bytes(text)),
                submit("resize", b"a B"),
                submit("careful", b"042"),
                submit("fetch", b"now"),
                submit("fetch", b"busy"),
                submit("fetch", b"elsewhere"),
            ]
        )
        assert results == [
            *(b"cba", b"ABC", b"ABC", b"abc", b"written", b"written", b"A b end", b"42"),
            *(b"attempt 1", b"attempt 3", b"attempt 1"),
        ]
        pieces: list[bytes] = []
        assert await submit("squares", b"3000", on_data=pieces.append) == b""
        assert [piece.count(b"\n") for piece in pieces] == [1000] * 3
        assert b"".join(pieces).endswith(b"\n8994001\n")
        with pytest.raises(JobFailed):
            await submit("careful")
        with pytest.raises(JobException) as caught:
            await submit("careful", b"odd")
        assert caught.value.data == b'{"code": 42}'
        with pytest.raises(JobException, match="ValueError: "):
            await submit("careful", b"x")
        # The standard library knows no jobs; what it raises has come out of a process of its own.
        for name in ("heavy", "thumbnail"):
            with pytest.raises(JobException, match="TypeError: expected str, bytes or "):
                await submit(name, b"/a/b")
    await service.stopService()
