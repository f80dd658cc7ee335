"""The command ``gearman-store`` on stores of ours; ``test_cli_store_import`` has the queues of gearmand."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from gearman_twisted.commands.store.__main__ import main
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.store.sql.sqlite import SQLiteFile
from gearman_twisted.store.sql.tables import SqlStore
from gearman_twisted.wire.constants import PacketType
from tests.kit.gearmand import Gearmand
from tests.kit.paths import doc_page
from tests.kit.redis_server import RedisServer
from tests.kit.servers import PATIENCE, TwistdGearman, WirePeer, run

GEARMAN_STORE = [sys.executable, "-m", "gearman_twisted.commands.store"]
BINARY = bytes(range(256)) * 3

JOBS = [
    StoredJob(1, b"H:here:1", b"resize", b"photo", b"small", 1),
    StoredJob(2, b"H:here:2", b"resize", b"", BINARY, 0),
    StoredJob(3, b"H:here:3", b"evil\x1b[2J\xff", b"-", b"", 2),
    StoredJob(4, b"H:here:4", b"later", b"u", b"x", 1, 4102444800),
    StoredJob(5, b"H:here:5", b"cron", b"u", b"x", 1, 0, b"", b"0 3 * * *"),
    StoredJob(6, b"H:here:6", b"split", b"u", b"x", 1, 0, b"reducer"),
    StoredJob(7, b"H:imported:abc", b"resize", b"other", b"z", 1, 1 << 62),
]


def gearman_store(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Runs the command to its end."""
    return run(*GEARMAN_STORE, *words)


def put(path: Path, jobs: Iterable[StoredJob]) -> str:
    """Puts jobs into a file of ours; returns its URL."""
    store = SqlStore(SQLiteFile(path))
    store.connect()
    store.apply(list(jobs), ())
    store.disconnect()
    return f"sqlite:{path}"


def jobs_in(path: Path) -> list[StoredJob]:
    """All jobs in a file of ours."""
    store = SqlStore(SQLiteFile(path))
    store.connect()
    jobs: list[StoredJob] = []
    after: int | None = 0
    while after is not None:
        page, after = store.page(after)
        jobs += page
    store.disconnect()
    return jobs


def many(number: int) -> list[StoredJob]:
    """So many jobs."""
    return [
        StoredJob(id_, b"H:here:%d" % id_, b"f%d" % (id_ % 7), b"%d" % id_, b"%d" % id_ * 9, id_ % 3)
        for id_ in range(1, number + 1)
    ]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with the seven jobs."""
    return put(tmp_path / "jobs.db", JOBS)


def assert_refused(done: subprocess.CompletedProcess[bytes], *parts: str) -> None:
    """Status 1, nothing on standard output, and one line on standard error that says certain things."""
    said = done.stderr.decode()
    assert (done.returncode, done.stdout, said.count("\n")) == (1, b"", 1), said
    assert said.startswith("gearman-store")
    for part in parts:
        assert part in said


def test_list(url: str) -> None:
    """A line per job in the order of ids, aligned, with nothing in it that could steer a terminal."""
    done = gearman_store("list", url)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert [line.split() for line in lines] == [
        ["HANDLE", "FUNCTION", "UNIQUE", "PRIORITY", "BYTES", "WHEN"],
        ["H:here:1", "resize", "photo", "normal", "5", "now"],
        ["H:here:2", "resize", "-", "high", "768", "now"],
        ["H:here:3", "evil\\x1b[2J\\xff", "-", "low", "0", "now"],
        ["H:here:4", "later", "u", "normal", "1", "2100-01-01T00:00:00Z"],
        ["H:here:5", "cron", "u", "normal", "1", "each", "0", "3", "*", "*", "*"],
        ["H:here:6", "split", "u", "normal", "1", "now"],
        ["H:imported:abc", "resize", "other", "normal", "1", str(1 << 62)],
    ]
    assert {line.index("  normal ") for line in lines[1:] if "normal" in line} == {
        lines[0].index("  PRIORITY")
    }


def test_list_of_some(url: str) -> None:
    """--function and --limit choose jobs, and go together."""
    done = gearman_store("list", url, "--function", "resize")
    assert re.findall(rb"H:\S+", done.stdout) == [b"H:here:1", b"H:here:2", b"H:imported:abc"]
    done = gearman_store("list", url, "--function", "resize", "--limit", "2")
    assert re.findall(rb"H:\S+", done.stdout) == [b"H:here:1", b"H:here:2"]
    done = gearman_store("list", url, "-n", "1")
    assert re.findall(rb"H:\S+", done.stdout) == [b"H:here:1"]


def test_limit_over_pages(tmp_path: Path) -> None:
    """A limit beyond the first page that a store reads is kept too, and what follows is not read."""
    url = put(tmp_path / "jobs.db", many(5000))
    lines = gearman_store("list", url, "--json", "--limit", "2100").stdout.splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(1, 2101))


def test_list_as_json(url: str) -> None:
    """--json prints an object per line that loses nothing but the workload."""
    done = gearman_store("list", url, "--json")
    names = ("high", "normal", "low")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [
        (
            job["id"],
            *(job[name].encode("utf-8", "surrogateescape") for name in ("handle", "function", "unique")),
            job["bytes"],
            names.index(job["priority"]),
            job["run_at"],
            *(job[name].encode() for name in ("reducer", "schedule")),
        )
        for job in found
    ] == [(*job[:4], len(job.workload), *job[5:]) for job in JOBS]


def test_count(url: str) -> None:
    """Jobs by function and priority, how many wait for their time, and the sums."""
    done = gearman_store("count", url)
    *table, last = done.stdout.decode().splitlines()
    assert [line.split() for line in table] == [
        ["FUNCTION", "HIGH", "NORMAL", "LOW", "LATER", "TOTAL", "BYTES"],
        ["cron", "0", "1", "0", "1", "1", "1"],
        ["evil\\x1b[2J\\xff", "0", "0", "1", "0", "1", "0"],
        ["later", "0", "1", "0", "1", "1", "1"],
        ["resize", "1", "2", "0", "1", "3", "774"],
        ["split", "0", "1", "0", "0", "1", "1"],
    ]
    assert last == "7 jobs of 5 functions, 777 bytes"
    lines = gearman_store("count", url, "--json").stdout.splitlines()
    assert json.loads(lines[3]) == {
        "function": "resize",
        "high": 1,
        "normal": 2,
        "low": 0,
        "later": 1,
        "total": 3,
        "bytes": 774,
    }


def test_count_of_an_empty_store(tmp_path: Path) -> None:
    """An empty store is counted too."""
    done = gearman_store("count", put(tmp_path / "jobs.db", []))
    assert done.stdout.splitlines()[1:] == [b"0 jobs of 0 functions, 0 bytes"]


def test_show(url: str) -> None:
    """A job by its handle or its id, with the beginning of its workload."""
    done = gearman_store("show", url, "H:here:2")
    lines = dict(line.partition(" ")[::2] for line in done.stdout.decode().splitlines())
    assert {name: text.strip() for name, text in lines.items() if name != "workload"} == {
        "handle": "H:here:2",
        "id": "2",
        "function": "resize",
        "unique": "",
        "priority": "high",
        "when": "now",
        "reducer": "",
        "bytes": "768",
    }
    assert lines["workload"].strip().startswith("\\x00\\x01")
    assert lines["workload"].endswith("…")
    assert gearman_store("show", url, "2").stdout == done.stdout
    assert b"each 0 3 * * *" in gearman_store("show", url, "5").stdout


@pytest.mark.parametrize(("which", "workload"), [("H:here:2", BINARY), ("3", b""), ("H:imported:abc", b"z")])
def test_show_workload(url: str, which: str, workload: bytes) -> None:
    """--workload prints the workload to the byte, and nothing else."""
    done = gearman_store("show", url, which, "--workload")
    assert (done.returncode, done.stdout, done.stderr) == (0, workload, b"")


@pytest.mark.parametrize("which", ["8", "H:here:8", "H:there:2", "nothing", "9" * 30])
def test_show_nothing(url: str, which: str) -> None:
    """A job that is not there is an error that names it."""
    assert_refused(gearman_store("show", url, which), f"there is no job {which} in SQLite file")


def test_store_that_a_server_has(tmp_path: Path) -> None:
    """A store in use is refused, with the process that has it and how to ask that."""
    with TwistdGearman(tmp_path, "--store=sqlite:jobs.db") as server:
        for words in ["list"], ["count"], ["show", "1"]:
            done = gearman_store(words[0], f"sqlite:{tmp_path / 'jobs.db'}", *words[1:])
            assert_refused(done, f"in use by process {server.process.pid}", "gearadmin --show-jobs")
        done = gearman_store("copy", f"sqlite:{tmp_path / 'jobs.db'}", f"sqlite:{tmp_path / 'new.db'}")
        assert_refused(done, f"in use by process {server.process.pid}")
        assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("words", [["list"], ["count"], ["show", "1"], ["copy", "sqlite:new.db"]])
def test_store_that_is_not_there(tmp_path: Path, words: list[str]) -> None:
    """A path that was mistyped is refused, and no file is made."""
    done = gearman_store(words[0], f"sqlite:{tmp_path / 'typo.db'}", *words[1:])
    assert_refused(done, f"there is no SQLite file {tmp_path / 'typo.db'}")
    assert list(tmp_path.iterdir()) == []


def test_copy(tmp_path: Path, url: str) -> None:
    """A copy has all jobs, to the byte, and the store that was read is as it was."""
    done = gearman_store("copy", url, f"sqlite:{tmp_path / 'copy.db'}", "--batch", "2")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"copied 7 of 7 jobs (777 bytes) from SQLite file" in done.stdout
    assert b"; 0 were there already; all are there\n" in done.stdout
    assert jobs_in(tmp_path / "copy.db") == jobs_in(tmp_path / "jobs.db") == JOBS


def test_copy_again(tmp_path: Path, url: str) -> None:
    """A second copy adds what is new, leaves alone what is there, and drops nothing."""
    own = StoredJob(100, b"H:there:100", b"own", b"", b"own", 1)
    target = put(tmp_path / "copy.db", [JOBS[1], JOBS[4], own])
    done = gearman_store("copy", url, target)
    assert b"copied 5 of 7 jobs" in done.stdout
    assert b"; 2 were there already" in done.stdout
    assert b"copied 0 of 7 jobs" in gearman_store("copy", url, target).stdout
    assert jobs_in(tmp_path / "copy.db") == [*JOBS, own]


def test_copy_over_another_job(tmp_path: Path, url: str) -> None:
    """Where an id stands for another job nothing is copied at all, and nothing is lost."""
    other = JOBS[4]._replace(workload=b"another")
    target = put(tmp_path / "copy.db", [other])
    for words in [], ["--dry-run"]:
        assert_refused(
            gearman_store("copy", url, target, *words), "1 id of FROM", "such as 5", "nothing was copied"
        )
    assert jobs_in(tmp_path / "copy.db") == [other]
    assert jobs_in(tmp_path / "jobs.db") == JOBS


def test_copy_of_a_handle_that_is_there(tmp_path: Path, url: str) -> None:
    """A server would take two jobs of one handle for one, so that is refused too."""
    other = JOBS[4]._replace(id=50, workload=b"another")
    target = put(tmp_path / "copy.db", [other])
    assert_refused(gearman_store("copy", url, target), "1 handle of FROM", "nothing was copied")
    assert jobs_in(tmp_path / "copy.db") == [other]


def test_copy_of_a_job_that_is_too_large(tmp_path: Path, own_redis: RedisServer) -> None:
    """A store that does not take one of the jobs gets none of them, and the job is named."""
    own_redis.start(proto_max_bulk_len="1mb")
    large = StoredJob(8, b"H:here:8", b"f", b"u", b"x" * (1 << 20), 1)
    url = put(tmp_path / "jobs.db", [*JOBS, large])
    assert_refused(
        gearman_store("copy", url, own_redis.url()),
        "takes workloads of up to 983,040 bytes, too few for 1 job of FROM, such as id 8 with 1,048,576",
    )


def test_dry_run_of_a_copy(tmp_path: Path, url: str) -> None:
    """A dry run says what would be done, and does not make the file."""
    target = tmp_path / "copy.db"
    done = gearman_store("copy", url, f"sqlite:{target}", "--dry-run")
    assert done.returncode == 0
    assert b"would copy 7 jobs (777 bytes)" in done.stdout
    assert not target.exists()
    put(target, JOBS[:3])
    done = gearman_store("copy", url, f"sqlite:{target}", "--dry-run")
    assert b"would copy 4 of 7 jobs (777 bytes)" in done.stdout
    assert b"3 were there already" in done.stdout
    assert jobs_in(target) == JOBS[:3]


def test_copy_onto_itself(tmp_path: Path, url: str) -> None:
    """The same file under another name is the same store."""
    (tmp_path / "link.db").symlink_to(tmp_path / "jobs.db")
    assert_refused(gearman_store("copy", url, f"sqlite:{tmp_path / 'link.db'}"), "both stores are the same")


def test_copy_that_does_not_come_through(tmp_path: Path, url: str) -> None:
    """A job that is not in the target after all is found out."""
    target = put(tmp_path / "copy.db", [])
    with closing(sqlite3.connect(tmp_path / "copy.db")) as file:
        file.execute(
            "CREATE TRIGGER loses AFTER INSERT ON gearman_jobs WHEN new.id = 3 "
            "BEGIN DELETE FROM gearman_jobs WHERE id = 3; END"
        )
    assert_refused(gearman_store("copy", url, target), "1 job of 7 jobs", "are not in", "such as id 3")


def test_damaged_rows_are_left_and_counted(tmp_path: Path, url: str) -> None:
    """What is damaged is said to be left behind, with status 1; all else is copied."""
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as file:
        file.execute("UPDATE gearman_jobs SET priority = 'x' WHERE id IN (2, 3)")
        file.commit()
    done = gearman_store("copy", url, f"sqlite:{tmp_path / 'copy.db'}")
    assert done.returncode == 1
    assert b"copied 5 of 5 jobs" in done.stdout
    assert b"gearman-store: The stored job with id 2 is damaged" in done.stderr
    assert b"gearman-store: 2 rows of FROM are damaged, and were left there\n" in done.stderr
    assert [job.id for job in jobs_in(tmp_path / "copy.db")] == [1, 4, 5, 6, 7]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_copy_that_was_stopped_goes_on(tmp_path: Path, number: int) -> None:
    """A copy that was interrupted or killed has lost nothing, and the next run does the rest."""
    jobs = many(4000)
    url, target = put(tmp_path / "jobs.db", jobs), put(tmp_path / "copy.db", [])
    words = [*GEARMAN_STORE, "copy", url, target]
    with (
        subprocess.Popen([*words, "--batch", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        closing(sqlite3.connect(tmp_path / "copy.db", timeout=PATIENCE)) as file,
    ):
        while file.execute("SELECT count(*) FROM gearman_jobs").fetchone() < (20,):
            assert process.poll() is None
        process.send_signal(number)
        printed, said = process.communicate(timeout=PATIENCE)
    assert printed == b""
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert (process.returncode, said) == (
            1,
            b"gearman-store: stopped; run the same command again to go on\n",
        )
    there = len(jobs_in(tmp_path / "copy.db"))
    assert 20 <= there < 4000
    done = run(*words)
    assert f"copied {4000 - there:,} of 4,000 jobs".encode() in done.stdout
    assert f"; {there:,} were there already".encode() in done.stdout
    assert jobs_in(tmp_path / "copy.db") == jobs


def test_copy_runs(tmp_path: Path) -> None:
    """What a server took and a copy holds, a server on the copy runs."""
    with TwistdGearman(tmp_path, "--store=sqlite:jobs.db") as server, WirePeer(server.port) as peer:
        for number in range(50):
            peer.ask(PacketType.SUBMIT_JOB_BG, b"f", b"", b"%d" % number + BINARY)
    assert (
        gearman_store("copy", f"sqlite:{tmp_path / 'jobs.db'}", f"sqlite:{tmp_path / 'copy.db'}").returncode
        == 0
    )
    with TwistdGearman(tmp_path, "--store=sqlite:copy.db") as server, WirePeer(server.port) as peer:
        assert list(peer.drain(b"f")) == [b"%d" % number + BINARY for number in range(50)]


def on_terminal(*words: str) -> tuple[int, bytes, bytes]:
    """Runs a command with standard error on a terminal; returns status, output, and what was shown."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # nobody has the other end open any more
                break
            shown += data
        os.close(ours)
        printed, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, printed, shown


def test_progress_on_a_terminal(tmp_path: Path, url: str) -> None:
    """A terminal is shown a bar, which is gone at the end; standard output stays clean."""
    status, printed, shown = on_terminal(*GEARMAN_STORE, "copy", url, f"sqlite:{tmp_path / 'copy.db'}")
    assert status == 0
    assert printed.startswith(b"copied 7 of 7 jobs")
    assert b"\x1b" not in printed
    for title in b"reading FROM", b"copying", b"checking TO":
        assert title in shown
    assert b"7/7" in shown
    assert shown.count(b"\x1b[?25h") == shown.count(b"\x1b[?25l") > 0


def test_progress_without_rich(tmp_path: Path, url: str) -> None:
    """Where rich is not installed a terminal is shown percents on one line, which is gone at the end."""
    script = (
        "import sys, importlib.util as util; find = util.find_spec; sys.modules['rich'] = None\n"
        "util.find_spec = lambda name, *rest: None if name == 'rich' else find(name, *rest)\n"
        "from gearman_twisted.commands.store.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    words = (sys.executable, "-c", script, "copy", url, f"sqlite:{tmp_path / 'copy.db'}")
    status, printed, shown = on_terminal(*words, "--batch", "2")
    assert status == 0
    assert printed.startswith(b"copied 7 of 7 jobs")
    assert b"\rreading FROM: 7\x1b[K\r\x1b[K" in shown
    assert b"\rcopying: 28 % (2 of 7)\x1b[K" in shown
    assert shown.endswith(b"\r\x1b[K")


def test_reader_that_goes_away(tmp_path: Path) -> None:
    """The reader of the list may stop: the command ends by SIGPIPE, without a message."""
    url = put(tmp_path / "jobs.db", many(5000))
    with subprocess.Popen(
        [*GEARMAN_STORE, "list", url], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (-signal.SIGPIPE, b"")
    assert len(jobs_in(tmp_path / "jobs.db")) == 5000


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["unknown"],
        ["list"],
        ["list", "sqlite:x", "--limit", "0"],
        ["list", "sqlite:x", "--limit", "many"],
        ["show", "sqlite:x"],
        ["copy", "sqlite:x"],
        ["copy", "sqlite:x", "sqlite:y", "--batch", "-1"],
        ["count", "sqlite:x", "--jso"],
        ["list", "nonsense"],
        ["list", "sqlite:"],
        ["count", "memory:"],
        ["copy", "memory:", "sqlite:x"],
        ["import", "memory:", "sqlite:x"],
        ["import", "sqlite:", "sqlite:x"],
        ["import", "sqlite:x", "memory:"],
        ["import", "sqlite:x?tabel=y", "sqlite:x"],
        ["import", "postgresql://me:secret@host/d", "sqlite:x"],
        ["import", "postgresql://me@host", "sqlite:x"],
        ["import", "redis://host/one", "sqlite:x"],
        ["import", "redis://one,two/0", "sqlite:x"],
    ],
)
def test_nonsense_is_refused_in_a_line(words: list[str]) -> None:
    """What makes no sense is one line and status 1, and repeats no password."""
    done = gearman_store(*words)
    assert_refused(done)
    assert b"secret" not in done.stderr


@pytest.mark.parametrize("words", [[], ["list"], ["count"], ["show"], ["copy"], ["import"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each command has its help, with examples."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "example" in printed
    assert " ".join(["usage: gearman-store", *words]) in printed


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--version shows the version."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("gearman_twisted ")


def test_documentation(tmp_path: Path) -> None:
    """What the documentation shows is what the command prints, on a queue of Debian's gearmand."""
    page = doc_page("gearman-store.md").read_text()
    (transcript,) = re.findall(r"<!-- tested -->\n```console\n(.*?)```", page, re.DOTALL)
    jobs = (
        ("resize", "photo-1", b"1.jpg 80x60"),
        ("resize", "photo-2", b"2.jpg 80x60"),
        ("mail", "welcome", b"to alice"),
    )
    server = Gearmand(tmp_path, "-q", "libsqlite3", f"--libsqlite3-db={tmp_path / 'old.db'}")
    try:
        for (function, unique, data), flags in zip(jobs, ([], ["-I"], ["-L"]), strict=True):
            words = server.command("-b", *flags, "-f", function, "-u", unique)
            subprocess.run(words, input=data, timeout=PATIENCE, check=True)
        server.end()
    finally:
        server.close()
    printed = ""
    for command in re.findall(r"^\$ gearman-store (.*)$", transcript, re.MULTILINE):
        done = subprocess.run(
            [*GEARMAN_STORE, *command.split()],
            cwd=tmp_path,
            capture_output=True,
            timeout=PATIENCE,
            check=True,
        )
        printed += f"$ gearman-store {command}\n{done.stdout.decode()}"
    assert printed.replace(str(tmp_path.resolve()), "/var/lib/gearman") == transcript


@pytest.mark.parametrize("command", ["list", "count", "show", "copy", "import"])
def test_options_are_documented(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option of each command stands in the documentation."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = doc_page("gearman-store.md").read_text()
    for option in set(re.findall(r"  (?:-\w, )?(--\w[\w-]*)", capsys.readouterr().out)) - {"--help"}:
        assert option in page
