"""Init scripts and the systemd unit, Debian's and ours, with our ``gearmand``."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.kit.databases import free_port
from tests.kit.paths import ROOT, doc_page
from tests.kit.servers import BIN, WirePeer, wait_until

DEBIAN = Path("/etc/init.d/gearman-job-server")
CONTRIB = ROOT / "contrib"


@attrs.frozen
class Service:
    """An init script whose files are in a directory of the test.

    Attributes:
        script: the script.
        port: where its server listens.
        pid_file: of the server.
    """

    script: Path
    port: int
    pid_file: Path

    def __call__(self, action: str) -> int:
        """Run the script, and return its exit status."""
        return subprocess.run([self.script, action], capture_output=True, timeout=100).returncode

    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def is_served(self) -> bool:
        with WirePeer(self.port) as peer:
            return peer.text(b"version", b"\n").startswith(b"OK")


def patched(directory: Path) -> Path:
    """Debian's script with the lines of the page."""
    if not DEBIAN.exists():
        pytest.skip("the package gearman-job-server is not installed")
    found = re.search(r"^```diff\n(.*?)^```$", doc_page("gearmand.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    script = directory / "gearman-job-server"
    shutil.copy(DEBIAN, script)
    done = subprocess.run(
        ["patch", "--fuzz=0", script], input=found[1], capture_output=True, text=True, cwd=directory
    )
    assert done.returncode == 0, done.stdout
    return script


@pytest.fixture(params=["debian", "ours"])
def service(request: pytest.FixtureRequest) -> Iterator[Service]:
    """Each script, for the ``gearmand`` under test; what it started is killed at the end."""
    if os.geteuid() != 0:
        pytest.skip("only root can run an init script")
    if shutil.which("start-stop-daemon") is None or not Path("/lib/lsb/init-functions").exists():
        pytest.skip("start-stop-daemon or the functions of LSB are not installed")
    try:
        pwd.getpwnam("gearman")
    except KeyError:
        pytest.skip("there is no user gearman")
    # Unlike tmp_path, others may enter it.
    with tempfile.TemporaryDirectory(prefix="gearman-test-") as name:
        directory, port = Path(name), free_port()
        directory.chmod(0o755)
        defaults = directory / "default"
        if request.param == "debian":
            script = patched(directory)
            defaults.write_text(f'PARAMS="--listen=127.0.0.1 --port={port} --daemon --log-file=none"\n')
        else:
            script = directory / "gearmand"
            shutil.copy(CONTRIB / "gearmand.init", script)
            defaults.write_text(f'PARAMS="--port={port}"\nSTATEDIR={directory}/state\n')
        text = script.read_text()
        for line, place in [
            ("DAEMON=/opt/gearman/bin/gearmand", f"DAEMON={BIN}/gearmand"),
            ("/run/gearman", f"{directory}/run"),
            ("/var/lib/gearmand", f"{directory}/lib"),
            (f"/etc/default/{script.name}", str(defaults)),
        ]:
            text = text.replace(line, place)
        assert text.count(str(defaults)) >= 1
        script.write_text(text)
        script.chmod(0o755)
        run = next(line for line in text.splitlines() if line.startswith(("PIDDIR=", "RUNDIR=")))
        found = Service(script, port, Path(run.partition("=")[2]) / "gearmand.pid")
        try:
            yield found
        finally:
            if found.pid_file.exists():
                os.kill(found.pid(), signal.SIGKILL)


def test_init_script(service: Service) -> None:
    """It starts the server as another user, knows whether it runs, restarts and stops it."""
    assert service("status") == 3
    assert service("start") == 0
    first = service.pid()
    assert service.is_served()
    assert service.pid_file.owner() == "gearman"
    assert Path(f"/proc/{first}").owner() == "gearman"
    assert service("status") == 0
    service("start")
    assert service.pid() == first, "a second server was started"
    assert service("restart") == 0
    second = service.pid()
    assert second != first
    assert not Path(f"/proc/{first}").exists()
    assert service.is_served()
    assert service("stop") == 0
    assert not Path(f"/proc/{second}").exists()
    assert not service.pid_file.exists()
    assert service("status") == 3
    assert service("stop") == 0


@pytest.mark.parametrize("service", ["ours"], indirect=True)
def test_options_leave_the_store(service: Service) -> None:
    """Options in /etc/default do not replace the store, which is in the directory that is set there."""
    assert service("start") == 0
    assert (service.script.parent / "state" / "jobs.db").exists()
    assert service("stop") == 0


def test_init_script_after_a_crash(service: Service) -> None:
    """The pid file of a server that was killed hinders nothing."""
    assert service("start") == 0
    dead = service.pid()
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{dead}").exists())
    assert service("status") == 1
    assert service("start") == 0
    assert service.is_served()
    assert service("stop") == 0


@pytest.mark.parametrize("service", ["ours"], indirect=True)
def test_reload(service: Service) -> None:
    """Reload sends SIGHUP, which does not end the server; without a server it fails."""
    assert service("reload") == 1
    assert service("start") == 0
    before = service.pid()
    assert service("reload") == 0
    assert service.is_served()
    assert service.pid() == before
    assert service("stop") == 0
    assert service("fly") == 2


def test_unit(tmp_path: Path) -> None:
    """The unit has no line that systemd does not know, and the page shows it as it is."""
    unit = (CONTRIB / "gearmand.service").read_text()
    assert f"```ini\n{unit}```\n" in doc_page("gearmand.md").read_text()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    changed = unit.replace("/opt/gearman/bin/gearmand", str(BIN / "gearmand")).replace(
        "=gearman\n", "=root\n"
    )
    (tmp_path / "gearmand.service").write_text(changed)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "gearmand.service"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
