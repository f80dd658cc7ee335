"""The system's clock is set back by an hour under a running server."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gearman_twisted.wire.constants import PacketType
from tests.kit.servers import ServerProcess, WirePeer, wait_until

P = PacketType

# A process whose wall clock SIGUSR2 sets back by an hour; what it then prints is its new time.
SCRIPT = """
import signal, sys, time
ahead = 0
clock = time.time
time.time = lambda: clock() + ahead
def set_back(_number, _frame):
    global ahead
    ahead = -3600
signal.signal(signal.SIGUSR2, set_back)
{start}
"""
TWISTD = "from twisted.scripts.twistd import run; run()"
GEARMAND = "from gearman_twisted.commands.gearmand.__main__ import main; sys.exit(main())"


@pytest.fixture(params=["twistd", "gearmand"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServerProcess]:
    """Each command, with a store."""
    log = tmp_path / "server.log"
    if request.param == "twistd":
        words = ["--nodaemon", "--pidfile=", f"--logfile={log}", "gearman"]
        words += ["--listen=tcp:0:interface=127.0.0.1", "--store=sqlite:jobs.db"]
        script = SCRIPT.format(start=TWISTD)
    else:
        words = ["-p", "0", "-L", "127.0.0.1", "-l", str(log), "-P", str(tmp_path / "pid")]
        words += ["--store", "sqlite:jobs.db", "--verbose=WARNING"]
        script = SCRIPT.format(start=GEARMAND)
    with ServerProcess(tmp_path, sys.executable, "-c", script, *words) as process:
        yield process


def test_time_limits_and_scheduled_jobs_go_on(server: ServerProcess) -> None:
    """A job that exceeds its time limit goes to another worker, and one for a date runs then."""
    with WirePeer(server.port) as client, WirePeer(server.port) as slow, WirePeer(server.port) as worker:
        slow.send(P.CAN_DO_TIMEOUT, b"f", b"1000")
        created = client.ask(P.SUBMIT_JOB_BG, b"f", b"", b"w")
        assert created is not None
        assigned = slow.ask(P.GRAB_JOB)
        assert assigned is not None
        assert assigned.args == [*created.args, b"f", b"w"]
        worker.send(P.CAN_DO, b"f")
        worker.send(P.PRE_SLEEP)
        server.process.send_signal(signal.SIGUSR2)
        assert worker.receive() == (P.NOOP, [])
        assigned = worker.ask(P.GRAB_JOB)
        assert assigned is not None
        assert assigned.args == [*created.args, b"f", b"w"]
        wait_until(lambda: "clock was set back by 3600 s" in server.log.read_text())
        date = b"%d" % (time.time() - 3600 + 2)
        client.ask(P.SUBMIT_JOB_EPOCH, b"f", b"", date, b"later")
        worker.send(P.PRE_SLEEP)
        assert worker.receive() == (P.NOOP, [])
        assigned = worker.ask(P.GRAB_JOB)
        assert assigned is not None
        assert assigned.args[2] == b"later"
