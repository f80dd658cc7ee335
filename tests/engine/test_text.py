"""The text protocol, answer by answer, to the byte."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.outbox import Shutdown
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import REQ
from tests.kit.engine_farm import NOON, Farm, P, packet

UNKNOWN = b"ERR UNKNOWN_COMMAND Unknown+server+command%b\r\n"
INCOMPLETE = b"ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+%b\r\n"


def busy_farm() -> Farm:
    """A farm with a job of each kind: running, queued, scheduled."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"g", b"f")
    client.submit(function=b"f", unique=b"u1")
    worker.grab()
    client.submit(function=b"f", unique=b"u2", type_=P.SUBMIT_JOB_LOW)
    client.submit(function=b"f", type_=P.SUBMIT_JOB_BG)
    client.submit(function=b"f", type_=P.SUBMIT_JOB_HIGH_BG)
    client.send(P.SUBMIT_JOB_EPOCH, b"h", b"later", b"%d" % (NOON + 5), b"")
    return farm


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"status", b"g\t0\t0\t1\nf\t4\t1\t1\nh\t1\t0\t0\n.\n"),
        (b"prioritystatus", b"g\t0\t0\t0\t1\nf\t1\t1\t1\t1\nh\t0\t1\t0\t0\n.\n"),
        (b"workers", b"1 192.0.2.1 - :\n2 192.0.2.1 - : g f\n3 192.0.2.1 - :\n.\n"),
        (
            b"show jobs",
            b"H:farm:1\t0\t0\t0\nH:farm:2\t0\t0\t0\nH:farm:3\t0\t0\t1\nH:farm:4\t0\t0\t1\nH:farm:5\t0\t0\t1\n.\n",
        ),
        (b"show unique jobs", b"u1\nu2\n\n\nlater\n.\n"),
    ],
)
def test_lists(command: bytes, answer: bytes) -> None:
    """Each list has its columns, ends with a dot, and has line feeds only; case and CR do not matter."""
    farm = busy_farm()
    assert farm.connect().ask(command) == answer
    for spelling in (command.upper(), command.replace(b" ", b"   "), command + b"\r"):
        asking = farm.connect()
        lines = asking.ask(spelling).splitlines()
        # Whoever asks is in the list of workers too.
        assert [line for line in lines if not line.startswith(b"%d " % asking.number)][:2] == (
            answer.splitlines()[:2]
        )
        asking.leave()


@pytest.mark.parametrize("command", [b"status", b"prioritystatus", b"show jobs", b"show unique jobs"])
def test_lists_of_nothing(command: bytes) -> None:
    """Without functions and jobs a list is its end."""
    assert Farm().connect().ask(command) == b".\n"


def test_workers_shows_ids_and_functions() -> None:
    """Each connection has a line: number, address, id, and its functions, newest first."""
    farm = Farm()
    farm.worker(b"f", b"g").send(P.SET_CLIENT_ID, b"me")
    farm.connect().send(P.SET_CLIENT_ID, b"x" * 128)
    lines = farm.connect().ask(b"workers").split(b"\n")
    assert lines[0] == b"1 192.0.2.1 me : g f"
    assert lines[1] == b"2 192.0.2.1 " + b"x" * 127 + b" :"
    assert lines[2:] == [b"3 192.0.2.1 - :", b".", b""]


def test_values_end_with_a_line_feed() -> None:
    """Values are told as they were set, without CR."""
    farm = Farm(settings=EngineSettings(server_version="1.2", log_level="INFO"))
    farm.engine.process_id = 4711
    operator = farm.connect()
    assert operator.ask(b"version") == b"OK 1.2\n"
    assert operator.ask(b"getpid") == b"OK 4711\n"
    assert operator.ask(b"Verbose") == b"OK INFO\n"
    assert operator.ask(b"version and more words\r") == b"OK 1.2\n"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (b"", b""),
        (b"\r", b""),
        (b"nonsense", b"nonsense"),
        (b"NonSense words", b"NonSense"),
        (b" status", b""),
        (b"statu", b"statu"),
        (b"shutdown", b"shutdown"),
        (b"show", b"show"),
        (b"Show\r", b"Show"),
        (b"cancel", b"cancel"),
        (b"cancel job", b"cancel"),
    ],
)
def test_unknown_commands(command: bytes, shown: bytes) -> None:
    """What is no command is told back, without a blank before it."""
    assert Farm().connect().ask(command) == UNKNOWN % shown


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (b"create", INCOMPLETE % b"create"),
        (b"create function", INCOMPLETE % b"create"),
        (b"create queue f", INCOMPLETE % b"create"),
        (b"drop", INCOMPLETE % b"drop"),
        (b"drop function", INCOMPLETE % b"drop"),
        (b"maxqueue", INCOMPLETE % b"maxqueue"),
        (b"show nothing", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        (b"show jobs ", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        (b"show unique", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        (b"show unique jobs now", b"ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        (b"cancel foo bar", b"ERR UNKNOWN_ERROR\r\n"),
        (b"cancel job X Y", b"ERR UNKNOWN_ERROR\r\n"),
        (b"cancel job X ", b"ERR UNKNOWN_ERROR\r\n"),
        (b"cancel job H:farm:99", b"ERR UNKNOWN_JOB\r\n"),
        (b"drop function f", b"ERR function not found\r\n"),
        (b"maxqueue f 1 2 3 4", b"ERR TOO_MANY_ARGUMENTS A+command+takes+at+most+5+words\r\n"),
        (b"status 1 2 3 4 5", b"ERR TOO_MANY_ARGUMENTS A+command+takes+at+most+5+words\r\n"),
    ],
)
def test_errors_end_with_crlf(command: bytes, answer: bytes) -> None:
    """Each mistake has its line, which monitoring scripts compare; the connection stays open."""
    farm = Farm()
    operator = farm.connect()
    assert operator.ask(command) == answer
    assert farm.closes == []


def test_five_words_are_taken() -> None:
    """A command may have five words."""
    assert Farm().connect().ask(b"maxqueue f 1 2 3") == b"OK\r\n"


@pytest.mark.parametrize("end", [b"", b"\r"])
def test_function_is_created_with_its_whole_name(end: bytes) -> None:
    """gearmand cuts the name's last letter off when the line ends without CR; we do not."""
    operator = Farm().connect()
    assert operator.ask(b"create function f" + end) == b"OK\r\n"
    assert operator.ask(b"Create Function f" + end) == b"OK\r\n"
    assert operator.ask(b"create function " + end) == b"OK\r\n"
    assert operator.ask(b"status") == b"f\t0\t0\t0\n\t0\t0\t0\n.\n"


def test_idle_function_is_dropped_in_any_spelling() -> None:
    """A function without jobs and workers is forgotten; every spelling of the name is."""
    operator = Farm().connect()
    operator.ask(b"create function Resize")
    operator.ask(b"create function resize")
    operator.ask(b"create function other")
    assert operator.ask(b"drop function RESIZE") == b"OK\r\n"
    assert operator.ask(b"status") == b"other\t0\t0\t0\n.\n"
    assert operator.ask(b"drop function resize") == b"ERR function not found\r\n"


@pytest.mark.parametrize("why", ["worker", "queued", "scheduled", "running"])
def test_function_in_use_is_not_dropped(why: str) -> None:
    """A function with workers or jobs stays, and so do they."""
    farm = Farm()
    client, operator = farm.connect(), farm.connect()
    if why == "scheduled":
        client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % (NOON + 5), b"")
    elif why != "worker":
        client.submit()
    if why in {"worker", "running"}:
        farm.worker().grab()
    status = operator.ask(b"status")
    refusal = b"ERR there are still connected workers or executing clients\r\n"
    assert operator.ask(b"drop function f") == refusal
    assert operator.ask(b"status") == status


def test_dropped_function_can_come_back() -> None:
    """A function that was dropped works as any new one, also for a worker that slept on it before."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    worker.sleep()
    worker.send(P.RESET_ABILITIES)
    assert client.ask(b"drop function f") == b"OK\r\n"
    worker.send(P.CAN_DO, b"f")
    handle = client.submit()
    assert worker.read() == [packet(P.NOOP)]
    assert worker.grab() == handle


def test_text_and_packets_are_answered_in_order() -> None:
    """Lines may stand between packets, and their answers stand between the packets' answers."""
    peer = Farm().connect()
    echo = encode(REQ, P.ECHO_REQ, b"x")
    peer.send_bytes(echo + b"status\n" + echo + b"version\r\n")
    echoed = b"\0RES" + echo[4:7] + b"\x11" + echo[8:]
    assert peer.unread == echoed + b".\n" + echoed + b"OK 0\n"


def test_names_cannot_forge_rows() -> None:
    """Control characters in names become question marks."""
    farm = Farm()
    farm.worker(b"a\n.\nb\t1").send(P.SET_CLIENT_ID, b"x\ny")
    operator = farm.connect()
    assert operator.ask(b"status") == b"a?.?b?1\t0\t0\t1\n.\n"
    assert operator.ask(b"workers").startswith(b"1 192.0.2.1 x?y : a?.?b?1\n")


def test_attempts_are_shown() -> None:
    """The list of jobs says how often each was taken from a worker."""
    farm = Farm()
    handle = farm.connect().submit(type_=P.SUBMIT_JOB_BG)
    for _ in range(2):
        worker = farm.worker()
        worker.grab()
        worker.leave()
    assert farm.connect().ask(b"show jobs") == handle + b"\t2\t0\t1\n.\n"


def test_shutdown_is_off_unless_it_is_allowed() -> None:
    """Shutdown is an unknown command, as in gearmand, unless the operator allows it."""
    farm = Farm()
    client = farm.connect()
    assert client.ask(b"shutdown") == b"ERR UNKNOWN_COMMAND Unknown+server+commandshutdown\r\n"
    assert farm.shutdowns == []


def test_shutdown_is_passed_on() -> None:
    """Where it is allowed, the server is told how to end."""
    farm = Farm(settings=EngineSettings(allows_shutdown=True))
    client = farm.connect()
    assert client.ask(b"shutdown graceful") == b"OK\r\n"
    assert client.ask(b"SHUTDOWN") == b"OK\r\n"
    assert client.ask(b"shutdown soon").startswith(b"ERR UNKNOWN_ARGUMENT ")
    assert farm.shutdowns == [Shutdown.GRACEFUL, Shutdown.NOW]


def test_scheduled_jobs_are_shown_and_cancelled_by_unique() -> None:
    """A job for a later second is listed with that second, and can be cancelled by its unique."""
    farm = Farm()
    client = farm.connect()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"u", b"2000000", b"w")
    [created] = client.read()
    assert client.ask(b"show scheduled") == b"%b\tf\tu\t2000000\t-\n.\n" % created.args[0]
    assert client.ask(b"cancel unique g u") == b"ERR UNKNOWN_JOB\r\n"
    assert client.ask(b"cancel unique f v") == b"ERR UNKNOWN_JOB\r\n"
    assert client.ask(b"cancel unique f u") == b"OK\r\n"
    assert client.ask(b"show scheduled") == b".\n"
