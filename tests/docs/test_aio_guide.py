"""The examples of the guide to asyncio, and the application with a server of its own, run as they stand."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.kit.paths import doc_page
from tests.kit.servers import BIN, PATIENCE, TwistdGearman, WirePeer, run


def write_examples(page: str, directory: Path) -> dict[str, Path]:
    """Writes each example of a page that names a file in its first line to that file."""
    written = {}
    for code in re.findall(r"```python\n(.*?)```", doc_page(page).read_text(), re.DOTALL):
        found = re.match(r"# (\w+\.\w+)\n", code)
        if found:
            written[found[1]] = directory / found[1]
            written[found[1]].write_text(code)
    return written


def listens(port: int) -> bool:
    """Whether connections are accepted."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_examples_of_asyncio(tmp_path: Path) -> None:
    """The client gets its results of the worker, which stops on SIGTERM as the guide says."""
    examples = write_examples("asyncio.md", tmp_path)
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        address = f"127.0.0.1:{server.port}"
        worker = subprocess.Popen([sys.executable, examples["worker.py"], address], stderr=subprocess.PIPE)
        try:
            done = run(sys.executable, examples["client.py"], address)
            assert done.stderr == b""
            assert done.stdout.decode().splitlines() == [
                "b'!dlroW olleH'",
                "True",
                "too late",
                "b'25'",
                "[b'eerht', b'eno', b'owt']",
            ]
            with WirePeer(server.port) as peer:
                assert b"checksum\t0\t0\t1\n" in peer.text(b"status", b".\n")
            worker.send_signal(signal.SIGTERM)
            assert worker.communicate(timeout=PATIENCE)[1] == b""
            assert worker.returncode == 0
        finally:
            worker.kill()
            worker.communicate(timeout=PATIENCE)


def test_server_on_any_endpoint(tmp_path: Path) -> None:
    """The program serves a UNIX socket, accepts a job there, and ends."""
    program = write_examples("library.md", tmp_path)["unix.py"]
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"b'H:")


def test_time_limit_of_an_admin_client(tmp_path: Path) -> None:
    """The program prints the answer, or that there was none in time."""
    program = write_examples("library.md", tmp_path)["probe.py"]
    program.write_text(program.read_text().replace("addTimeout(5,", "addTimeout(0.5,"))
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        done = run(sys.executable, program, f"127.0.0.1:{frozen.getsockname()[1]}")
    assert (done.stdout, done.stderr) == (b"no answer within 5 seconds\n", b"")
    program.write_text(program.read_text().replace("addTimeout(0.5,", f"addTimeout({PATIENCE},"))
    with TwistdGearman(tmp_path, "--store", "memory:") as server:
        done = run(sys.executable, program, f"127.0.0.1:{server.port}")
    assert (done.stdout, done.stderr) == (b"[]\n", b"")


def test_application_with_a_server(tmp_path: Path) -> None:
    """An application of twistd carries a server and a worker, and keeps jobs from one start to the next."""
    examples = write_examples("library.md", tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = examples["shop.tac"]
    program.write_text(program.read_text().replace("4730", str(port)))
    for is_first in (True, False):
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen(
                [BIN / "twistd", "--pidfile=", "-ny", program], cwd=tmp_path, stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + PATIENCE
            while not listens(port):
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
            here: list[str | Path] = [BIN / "gearman", "-h", "127.0.0.1", "-p", str(port)]
            done = run(*here, "-f", "reverse", "Hello World!")
            assert done.stdout == b"!dlroW olleH", (done.stderr, (tmp_path / "log").read_text())
            with WirePeer(port) as peer:
                known = b"later\t1\t0\t0\n" in peer.text(b"status", b".\n")
            assert known is not is_first
            if is_first:
                assert run(*here, "-b", "-f", "later", "x").returncode == 0
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)
