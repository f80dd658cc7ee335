"""The examples, run as their READMEs say, against a ``twistd gearman``.

The commands are taken from the README, with the ports that stand there replaced by free ones.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from PIL import Image

from tests.kit.paths import ROOT
from tests.kit.servers import BIN, PATIENCE, TwistdGearman, WirePeer, wait_until

EXAMPLES = ROOT / "examples"
PAGES = sorted(EXAMPLES.rglob("README.md"))


class Example:
    """A copy of an example's folder, and the commands of its README.

    Args:
        name: the folder.
        directory: where to copy it.
        server: what the commands talk to.
    """

    def __init__(self, name: str, directory: Path, server: TwistdGearman) -> None:
        self.folder = directory / name
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        blocks = re.findall(r"```sh\n(.*?)```", (self.folder / "README.md").read_text(), re.DOTALL)
        self._commands = [line for block in blocks for line in block.splitlines()]
        self._used: set[str] = set()
        self._ports = {"4730": str(server.port)}
        # As in an activated environment; what Python prints is there at once.
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
        }
        self._started: list[subprocess.Popen[str]] = []
        self._log = directory / f"{name}.log"

    def __enter__(self) -> Example:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends what runs in the background."""
        for process in self._started:
            if process.poll() is None:
                # A session of its own, so that what the shell has started ends with it.
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        self._started.clear()

    def run(self, part: str, *, status: int = 0) -> str:
        """Runs the one command that contains a text to its end; returns what it printed."""
        done = self.shell(self._command(part))
        assert done.returncode == status, done
        return done.stdout

    def shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Runs any command as if it stood in the README."""
        return subprocess.run(
            ["sh", "-c", self._with_ports(command)],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def start(self, part: str, *, position: int = 0) -> subprocess.Popen[str]:
        """Starts a command that contains a text, and says with ``&`` that it stays in the background."""
        command = self._command(part, position)
        assert command.endswith(" &"), command
        with self._log.open("a") as log:
            process = subprocess.Popen(
                ["sh", "-c", self._with_ports(command.removesuffix(" &"))],
                cwd=self.folder,
                env=self._environment,
                stdout=log if "twistd" in command else subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def listen(self, part: str, port: str) -> Callable[[], str]:
        """Starts a command that listens on a port; returns what reads the next line that it prints."""
        self._ports[port] = "0"
        process = self.start(part)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found, (line, self._log.read_text())
        self._ports[port] = found[1]
        return process.stdout.readline

    def url(self, path: str) -> str:
        """A URL of what listens on 8080 in the README."""
        return f"http://127.0.0.1:{self._ports['8080']}{path}"

    def all_were_run(self) -> bool:
        """Whether no command of the README is left."""
        return self._used == set(self._commands)

    def log(self) -> str:
        """What those in the background had to say."""
        return self._log.read_text()

    def _command(self, part: str, position: int = 0) -> str:
        found = [command for command in self._commands if part in command]
        assert len(set(found)) == 1, (part, found)
        command: str = found[position]
        self._used.add(command)
        return command

    def _with_ports(self, command: str) -> str:
        return re.sub(r"\b(4730|8025|8080)\b", lambda match: self._ports[match[1]], command)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwistdGearman]:
    """A durable server for all of them."""
    with TwistdGearman(tmp_path_factory.mktemp("server")) as server:
        yield server


def counts(server: TwistdGearman, function: str) -> list[int]:
    """The jobs of a function, how many of them run, and its workers."""
    with WirePeer(server.port) as operator:
        for line in operator.text(b"status", b".\n").decode().splitlines():
            if line.startswith(f"{function}\t"):
                return [int(column) for column in line.split("\t")[1:]]
    return [0, 0, 0]


def test_every_example_is_listed() -> None:
    """The list of the examples has each folder, by the link to its README."""
    folders = {page.parent.name for page in PAGES} - {EXAMPLES.name}
    listed = re.findall(r"\]\((\w+)/README\.md\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(folders)


LANGUAGES = {"python": "twistd", "php": "php worker.php", "perl": "perl worker.pl", "shell": "sh worker.sh"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_reverse(language: str, tmp_path: Path, server: TwistdGearman) -> None:
    """The clients of all four languages are served by the worker of each."""
    with Example("reverse", tmp_path, server) as example:
        example.start(LANGUAGES[language])
        for client in ("python client.py", "php client.php", "perl client.pl", "sh client.sh"):
            assert example.run(client) == "!dlroW olleH\n"


def test_reverse_with_the_original_command(tmp_path: Path, server: TwistdGearman) -> None:
    """The shell scripts are the same for the ``gearman`` that Debian has."""
    with Example("reverse", tmp_path, server) as example:
        example._environment["PATH"] = "/usr/bin:/bin"
        example.start("sh worker.sh")
        assert example.run("sh client.sh") == "!dlroW olleH\n"


def test_no_server_is_one_line(tmp_path: Path, server: TwistdGearman) -> None:
    """A client that finds no server says so in a line, and its status is 1."""
    with socket.socket() as nobody, Example("reverse", tmp_path, server) as example:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        done = example.shell(f"python client.py {address} text")
    assert done.returncode == 1
    assert done.stderr.startswith(f"no result: cannot connect to {address}: ")
    assert done.stderr.count("\n") == 1


def test_resize(tmp_path: Path, server: TwistdGearman) -> None:
    """An image comes back in the format that it had, in the size that was asked for, with its shape."""
    with Example("resize", tmp_path, server) as example:
        example.start("gearman-worker")
        example.run("python -c")
        example.run("python client.py")
        with (
            Image.open(example.folder / "large.jpg") as large,
            Image.open(example.folder / "small.jpg") as small,
        ):
            assert (large.size, small.size, small.format) == ((1600, 1200), (320, 240), "JPEG")
        assert example.all_were_run()

        Image.new("RGB", (100, 400)).save(example.folder / "tall.png")
        assert example.shell("python client.py 127.0.0.1:4730 50x100 tall.png low.png").returncode == 0
        with Image.open(example.folder / "low.png") as low:
            assert (low.size, low.format) == ((25, 100), "PNG")

        done = example.shell("python client.py 127.0.0.1:4730 50x100 README.md none.png")
        assert done.returncode == 1
        assert "cannot resize README.md" in done.stderr
        assert "cannot identify image file" in done.stderr
        assert not (example.folder / "none.png").exists()


def texts_of(pdf: bytes) -> list[str]:
    """The texts that are drawn in a PDF of reportlab."""
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")
    texts = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        drawn = zlib.decompress(base64.a85decode(b"<~" + stream.strip(), adobe=True)).decode("latin-1")
        texts += [
            re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), text)
            for text in re.findall(r"\((.*?)\) Tj", drawn)
        ]
    return texts


def test_invoices(tmp_path: Path, server: TwistdGearman) -> None:
    """Each line of the file becomes a PDF in a mail to its customer, once."""
    with Example("invoices", tmp_path, server) as example:
        next_mail = example.listen("smtp_sink.py", "8025")
        example.start("gearman-worker")
        assert example.run("python client.py") == "20 invoices will be sent\n"
        mails = sorted(next_mail() for _ in range(20))
        wait_until(lambda: counts(server, "invoice")[0] == 0)
        assert example.all_were_run()
        with (example.folder / "invoices.csv").open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        assert len(rows) == 20
        sent = []
        for number, name, email, text, amount in rows:
            path = example.folder / "mails" / f"invoice-{number}.pdf"
            pdf = path.read_bytes()
            assert texts_of(pdf) == [f"Invoice {number}", f"To {name}", text, f"{amount} EUR"]
            sent.append(f"to {email}: {path.name}, {len(pdf)} bytes\n")
        assert mails == sorted(sent)
        assert len(list((example.folder / "mails").iterdir())) == 20


def test_feeds(tmp_path: Path, server: TwistdGearman) -> None:
    """Ten submissions of a URL fetch it once, and all of them get the result."""
    with Example("feeds", tmp_path, server) as example:
        example.listen("feed_site.py", "8080")
        client = example.start("python client.py")
        assert client.stdout is not None
        # Without a worker they all wait, and so they all meet.
        assert client.stdout.readline() == "30 submissions, 3 jobs\n"
        example.start("gearman-worker")
        assert client.stdout.read() == (
            f"{example.url('/kitchen.atom')} has Bread in a pot, What to do with <too many> plums\n"
            f"{example.url('/garden.atom')} has The first frost, Seeds & cuttings, A wall of beans\n"
            f"{example.url('/workshop.atom')} has Sharpening a plane\n"
        )
        assert client.wait(PATIENCE) == 0
        assert json.loads(example.run("curl")) == {"kitchen": 1, "garden": 1, "workshop": 1}
        assert example.all_were_run()

        done = example.shell("python client.py 127.0.0.1:4730 http://127.0.0.1:8080/none")
        assert done.returncode == 1
        assert "the site answered 404" in done.stderr


def test_shards(tmp_path: Path, server: TwistdGearman) -> None:
    """The answer over four files is the one that a single database with all of their rows gives."""
    with Example("shards", tmp_path, server) as example:
        example.run("make_shards.py")
        example.start("gearman-worker")
        printed = example.run("python client.py")
        assert example.all_were_run()
        files = sorted((example.folder / "data").glob("*.db"))
        assert len(files) == 4
        with closing(sqlite3.connect(":memory:")) as whole:
            whole.execute("CREATE TABLE sales (month TEXT, region TEXT, cents INTEGER)")
            for file in files:
                with closing(sqlite3.connect(file)) as shard:
                    rows = shard.execute("SELECT month, region, cents FROM sales").fetchall()
                whole.executemany("INSERT INTO sales VALUES (?, ?, ?)", rows)
            expected = whole.execute(
                "SELECT region, COUNT(*), SUM(cents), AVG(cents) FROM sales WHERE month >= '2022-06' "
                "GROUP BY region ORDER BY region"
            ).fetchall()
        found = re.findall(r"(\w+) +(\d+) sales +([\d.]+) in all +([\d.]+) on average\n", printed)
        assert len(found) == 4
        for (region, count, total, average), line in zip(expected, found, strict=True):
            assert line == (region, str(count), f"{total / 100:.2f}", f"{average / 100:.2f}")


# A check that ends when another one runs at the same time, which takes two workers.
MEET = """#!/bin/sh
touch "$1"
until [ -e "$2" ]; do sleep 0.05; done
echo "MEET OK - $1 saw $2"
"""


def test_checks(tmp_path: Path, server: TwistdGearman) -> None:
    """Results of all four statuses, of checks that ran on two workers, reach the collector's file."""
    with Example("checks", tmp_path, server) as example:
        assert [check["service"] for check in json.loads((example.folder / "checks.json").read_bytes())] == [
            "disk",
            "gearman",
        ]
        meet = example.folder / "plugins" / "meet"
        meet.write_text(MEET)
        meet.chmod(0o755)
        commands = {
            "roomy": ["check_disk", "/", "0", "0"],
            "fuller": ["check_disk", "/", "101", "0"],
            "full": ["check_disk", "/", "101", "101"],
            "missing": ["check_disk", "/no/such/place", "10", "5"],
            "here": ["check_tcp", "127.0.0.1", str(server.port)],
            "forbidden": ["../../bin/sh", "-c", "touch broken"],
            "first": ["meet", "a", "b"],
            "second": ["meet", "b", "a"],
        }
        checks = [{"host": "h", "service": name, "command": command} for name, command in commands.items()]
        (example.folder / "checks.json").write_text(json.dumps(checks))
        for position in (0, 1):
            example.start("check=worker:check", position=position)
        example.start("collector:collect")
        assert example.run("python client.py") == "8 checks will be done\n"
        assert example.all_were_run()
        results = example.folder / "nagios.cmd"
        wait_until(lambda: results.exists() and len(results.read_text().splitlines()) == len(checks))
        pattern = r"\[\d{10}\] PROCESS_SERVICE_CHECK_RESULT;h;(\w+);(\d);(.*)\n"
        found = {name: (int(status), text) for name, status, text in re.findall(pattern, results.read_text())}
        assert {name: status for name, (status, _) in found.items()} == {
            "roomy": 0,
            "fuller": 1,
            "full": 2,
            "missing": 3,
            "here": 0,
            "forbidden": 3,
            "first": 0,
            "second": 0,
        }
        assert found["full"][1].startswith("DISK CRITICAL - ")
        assert found["missing"][1] == "DISK UNKNOWN - no file system at /no/such/place"
        assert found["forbidden"][1] == "there is no plugin '../../bin/sh'"
        assert not (example.folder / "broken").exists()


def test_progress(tmp_path: Path, server: TwistdGearman) -> None:
    """The event stream has each step of the job, then its result; and comes while the job runs."""
    with Example("progress", tmp_path, server) as example:
        example.start("gearman-worker")
        example.listen("page.py", "8080")
        with urlopen(example.url("/"), timeout=PATIENCE) as page:
            assert "new EventSource(`events?" in page.read().decode()

        events = example.run("curl").removesuffix("\n\n").split("\n\n")
        statuses = [f"event: status\ndata: [{done}, 20]" for done in range(1, 21)]
        assert events == [*statuses, 'event: result\ndata: "20 steps are done"']
        assert example.all_were_run()

        # This one takes a quarter of an hour: what can be read of it comes before its end.
        long = example.url("/events?job=long&steps=9999")
        with urlopen(long, timeout=PATIENCE) as first, urlopen(long, timeout=PATIENCE) as second:
            assert first.headers["Content-Type"] == "text/event-stream"
            for stream in (first, second):
                assert stream.readline() == b"event: status\n"
                assert json.loads(stream.readline().removeprefix(b"data: "))[1] == 9999
            assert counts(server, "steps") == [1, 1, 1]

        for wrong in ("", "?job=a%20b&steps=1", "?job=a&steps=0"):
            with pytest.raises(HTTPError, match="400"):
                urlopen(example.url(f"/events{wrong}"), timeout=PATIENCE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link of an example to a file of the project leads to one."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
