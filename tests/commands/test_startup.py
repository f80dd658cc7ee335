"""What a server's process arranges for when it starts, looked at from inside such processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
    assert "thresholds 20000 10 20 frozen True" in done.stdout, done.stdout + done.stderr
