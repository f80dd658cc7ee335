"""The examples of the client's guide, run with real servers and a real worker."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import Service
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import maybeDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

from gearman_twisted import GearmanWorker, JobServerService
from gearman_twisted.runtime.tls import ServerTls
from gearman_twisted.server.listening import server_endpoints
from gearman_twisted.store.memory import MemoryStore
from tests.kit.certificates import Certificates
from tests.kit.guides import Block, blocks, expect_lines, programs, run_page
from tests.kit.paths import doc_page
from tests.kit.servers import BIN, PATIENCE, TwistdGearman, WirePeer, run

reactor: Any = installed_reactor
PAGE = doc_page("client.md")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Two servers: what stands on the page, and their addresses in its place."""
    directories = [tmp_path / name for name in ("one", "two")]
    for directory in directories:
        directory.mkdir()
    with (
        TwistdGearman(directories[0], "--store=memory:") as one,
        TwistdGearman(directories[1], "--store=memory:") as two,
    ):
        yield {"127.0.0.1:4730": f"127.0.0.1:{one.port}", "127.0.0.1:4731": f"127.0.0.1:{two.port}"}


@pytest.fixture
def unhandled() -> Iterator[list[LogEvent]]:
    """Errors of Deferreds that nobody has handled."""
    events: list[LogEvent] = []

    @implementer(ILogObserver)
    class Observer:
        def __call__(self, event: LogEvent) -> None:
            if str(event.get("log_format", "")).startswith("Unhandled error in Deferred"):
                events.append(event)

    observer = Observer()
    globalLogPublisher.addObserver(observer)
    yield events
    globalLogPublisher.removeObserver(observer)


@pytest_twisted.ensureDeferred
async def test_client_guide(
    tmp_path: Path,
    servers: dict[str, str],
    unhandled: list[LogEvent],
    no_calls_left: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each example of the client's guide prints what stands below it."""
    files = Certificates(tmp_path)
    monkeypatch.chdir(tmp_path)  # where the guide finds ca.pem
    tls = ServerTls(files["local.pem"], files["local.key"])
    over_tls = JobServerService(reactor, server_endpoints(reactor, "127.0.0.1:0", tls=tls), MemoryStore())
    over_tls.startService()
    await over_tls.when_ready()
    address: Any = over_tls.addresses[0]
    names: dict[str, Any] = {}
    try:
        await run_page(PAGE, {**servers, '"jobs.example", 4730)': f'"127.0.0.1", {address.port})'}, names)
    except BaseException:
        for service in names.values():
            if isinstance(service, Service):
                await maybeDeferred(service.stopService)
        raise
    finally:
        await over_tls.stopService()
    gc.collect()
    assert unhandled == []


@pytest_twisted.ensureDeferred
async def test_program_of_the_client_guide(tmp_path: Path, servers: dict[str, str]) -> None:
    """The program at the top of the page prints the result."""
    worker = GearmanWorker(servers["127.0.0.1:4730"])
    worker.register("reverse", lambda job: job.workload[::-1])
    worker.startService()
    path = tmp_path / "hello.py"
    path.write_text(programs(PAGE, servers)["hello.py"])
    try:
        done = await deferToThread(run, sys.executable, path)
    finally:
        await worker.stopService()
    assert done.returncode == 0, done
    (block,) = (block for block in blocks(PAGE) if block.file_name == "hello.py")
    expect_lines(done.stdout.decode().splitlines(), block.shown, "hello.py")


def test_application_of_the_client_guide(tmp_path: Path, servers: dict[str, str]) -> None:
    """The application submits its schedule when twistd starts it, to the first server."""
    (tmp_path / "shop.tac").write_text(programs(PAGE, servers)["shop.tac"])
    log = tmp_path / "log"
    words = [str(BIN / "twistd"), "--nodaemon", "--pidfile=", f"--logfile={log}", "-y", "shop.tac"]
    process = subprocess.Popen(words, cwd=tmp_path)
    try:
        with WirePeer(int(servers["127.0.0.1:4730"].partition(":")[2])) as peer:
            while (scheduled := peer.text(b"show scheduled", b".\n")) == b".\n":
                assert process.poll() is None, log.read_text()
                time.sleep(0.01)
        # The answer may still be on its way when the server shows the job, and then get lost.
        told = log.read_text()
        process.terminate()
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert b"\treport\treport\t" in scheduled
    assert "there will be no report" not in told


def page_of(tmp_path: Path, *codes: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text("# A page\n\n" + "\n".join(f"```python\n{code}\n```\n" for code in codes))
    return path


@pytest_twisted.ensureDeferred
async def test_runner_tells_what_is_wrong(tmp_path: Path) -> None:
    """A page that shows something else than it prints is found out, and so is one that fails."""
    good = page_of(tmp_path, "import math", "# a.py\nno()", "print('a b')\nprint(math.e)\n#> a b\n#> 2.7...")
    assert list(blocks(good)) == [
        Block(4, "import math\n"),
        Block(8, "# a.py\nno()\n"),
        Block(13, "print('a b')\nprint(math.e)\n#> a b\n#> 2.7...\n"),
    ]
    assert programs(good, {"no": "yes"}) == {"a.py": "# a.py\nyes()\n"}
    await run_page(good, {})
    for code in ("print(1)\n#> 2", "print(1)", "#> 1", "print(1, 2)\n#> 1", "print(1)\nprint(2)\n#> ..."):
        with pytest.raises(AssertionError, match=r"page.md, line 4, shows"):
            await run_page(page_of(tmp_path, code), {})
    with pytest.raises(ZeroDivisionError) as caught:
        await run_page(page_of(tmp_path, "x = 1", "\n1 / 0"), {})
    assert (caught.traceback[-1].path, caught.traceback[-1].lineno) == (tmp_path / "page.md", 8)
