"""What a server's process arranges for and says when it starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gearman_twisted.commands.startup import _typed
from tests.kit.certificates import Certificates
from tests.kit.servers import BIN, ServerProcess

# Starts a command's server in this process, and prints what holds when its reactor runs.
_INSIDE = """
import gc, sys
from twisted.internet import reactor
def look():
    print("thresholds", *gc.get_threshold(), "frozen", gc.get_freeze_count() > 10_000)
    reactor.stop()
reactor.callWhenRunning(lambda: reactor.callLater(0.2, look))
"""
_TWISTD = """
from gearman_twisted.commands.twistd.server import Options, makeService
options = Options()
options.parseOptions(["--listen=tcp:0:interface=127.0.0.1", "--store=memory:"])
makeService(options).startService()
reactor.run()
"""
_GEARMAND = """
from gearman_twisted.commands.gearmand.__main__ import main
main(["--listen=127.0.0.1", "--port=0", "--log-file=stderr", f"--pid-file={sys.argv[1]}"])
"""


@pytest.mark.parametrize("command", [_TWISTD, _GEARMAND], ids=["twistd", "gearmand"])
def test_garbage_is_seldom_looked_for(command: str, tmp_path: Path) -> None:
    """What was there at the start is not gone through again, and new garbage is looked for seldom."""
    words = [sys.executable, "-c", _INSIDE + command, str(tmp_path / "pid")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "thresholds 20000 2 100 frozen True" in done.stdout, done.stdout + done.stderr


def test_what_to_try_is_in_the_clear(tmp_path: Path) -> None:
    """Of a place with TLS and one without, the server advises to try the latter; of TLS alone, with -S."""
    files = Certificates(tmp_path)
    tls = f"--listen=ssl:0:privateKey={files['server.key']}:certKey={files['server.pem']}:interface=127.0.0.1"
    words: list[str | Path] = [BIN / "twistd", "-n", "gearman", "--store=memory:"]
    with ServerProcess(tmp_path, *words, tls, "--listen=tcp:0:interface=127.0.0.1") as server:
        both = re.search(r"on +127\.0\.0\.1:\d+ with TLS, 127\.0\.0\.1:(\d+)\n", server.banner)
        assert both is not None
        assert re.search(rf"try it +\S*gearman -h 127\.0\.0\.1 -p {both[1]} ", server.banner)
    with ServerProcess(tmp_path, *words, tls) as server:
        assert re.search(rf"try it +\S*gearman -S -h 127\.0\.0\.1 -p {server.port} ", server.banner)


@pytest.mark.parametrize("is_found", [True, False], ids=["in PATH", "not in PATH"])
def test_what_to_try_works_as_pasted(is_found: bool, tmp_path: Path) -> None:
    """The three lines start a worker, submit a job to it and show the status, pasted into a shell at once."""
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}" if is_found else "/usr/bin:/bin"
    words: list[str | Path] = [BIN / "twistd", "-n", "gearman", "--store=memory:", "--listen=127.0.0.1:0"]
    with ServerProcess(BIN.parent.parent, *words, PATH=path) as server:
        _, _, pasted = server.banner.partition("try it")
        lines = [line.strip() for line in pasted.splitlines()]
        begins = "gearman" if is_found else f"{BIN.relative_to(BIN.parent.parent)}/gearman"
        assert lines[0].startswith(f"{begins} -h 127.0.0.1 ")
        done = subprocess.run(
            ["sh", "-c", "\n".join([*lines, "kill $!"])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=BIN.parent.parent,
            env={**os.environ, "PATH": path},
        )
    assert (done.stdout, done.stderr) == ("12\nwc\t0\t0\t1\n.\n", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_to_try_where_the_user_may_not_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that became a user who may not enter the directory of its program says where it listens."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    tmp_path.chmod(0o700)
    os.seteuid(65_534)
    try:
        assert _typed("gearman") == "gearman"
    finally:
        os.seteuid(0)
