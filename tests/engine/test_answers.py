"""Options, errors, status and limits: what the server answers besides running jobs."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.codec import encode
from gearman_twisted.wire.constants import PACKETS, REQ, RES, Direction
from tests.kit.engine_farm import NOON, Farm, P, Peer, packet

NOT_EXPECTED = packet(P.ERROR, b"INVALID_COMMAND", b"Command not expected")
UNKNOWN_OPTION = packet(P.ERROR, b"UNKNOWN_OPTION", b"Server does not recognize given option")
FULL = packet(P.ERROR, b"QUEUE_ERROR", b"Job queue is full")

SERVER_ONLY = [type_ for type_, spec in PACKETS.items() if spec.direction is Direction.RESPONSE]
NOT_SERVED = [
    P.UNUSED,
    P.ALL_YOURS,
]


@pytest.mark.parametrize("data", [b"", b"x", b"\0a\0\n"])
def test_echo_comes_back_as_it_is(data: bytes) -> None:
    """ECHO_RES carries the bytes of ECHO_REQ."""
    peer = Farm().connect()
    peer.send(P.ECHO_REQ, data)
    assert peer.read() == [packet(P.ECHO_RES, data)]


@pytest.mark.parametrize("type_", [*SERVER_ONLY, *NOT_SERVED], ids=lambda type_: P(type_).name)
def test_packet_that_no_client_should_send_is_refused(type_: int) -> None:
    """It is answered with an ERROR, and the connection can be used on."""
    peer = Farm().connect()
    peer.send(type_, *(b"1" for _ in PACKETS[type_].arguments))
    peer.send(P.ECHO_REQ, b"")
    assert peer.read() == [NOT_EXPECTED, packet(P.ECHO_RES, b"")]
    assert peer.ask(b"status") == b".\n"


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"\0REQ\xff\xff\xff\xff\0\0\0\0", b"INVALID_COMMAND", b"Invalid command expected"),
        (encode(RES, P.NOOP), b"INVALID_MAGIC", b"Request magic expected"),
        (b"\0REQ\0\0\0\x07\0\0\0\x01f", b"INVALID_PACKET", b"SUBMIT_JOB takes 3 arguments, not 1"),
    ],
)
def test_bad_packet_is_answered_in_its_place(data: bytes, code: bytes, text: bytes) -> None:
    """A packet that makes no sense gets an ERROR, between the answers to its neighbours."""
    farm = Farm()
    peer = farm.connect()
    echo = encode(REQ, P.ECHO_REQ, b"")
    peer.send_bytes(echo + data + echo)
    echoed = packet(P.ECHO_RES, b"")
    assert peer.read() == [echoed, packet(P.ERROR, code, text), echoed]
    assert farm.closes == []


@pytest.mark.parametrize("data", [b"\0GET", b"x" * 8192])
def test_broken_stream_is_answered_and_closed(data: bytes) -> None:
    """Bytes that are no Gearman at all get an ERROR, and the connection is closed."""
    farm = Farm()
    peer = farm.connect()
    peer.send_bytes(data)
    [error] = peer.read()
    assert error.args[0] == b"INVALID_MAGIC"
    assert farm.closes == [peer.number]


# Options.


@pytest.mark.parametrize("option", [b"exceptions", b"EXCEPTIONS", b"Exceptions\0"])
def test_option_is_echoed_as_it_was_sent(option: bytes) -> None:
    """libgearman waits for OPTION_RES; upper and lower case are the same."""
    peer = Farm().connect()
    peer.send(P.OPTION_REQ, option)
    assert peer.read() == [packet(P.OPTION_RES, option)]


@pytest.mark.parametrize("option", [b"", b"exception", b"exceptionsx", b"x" * 8191])
def test_unknown_option_is_refused(option: bytes) -> None:
    """No other option exists."""
    peer = Farm().connect()
    peer.send(P.OPTION_REQ, option)
    assert peer.read() == [UNKNOWN_OPTION]


def test_exception_reaches_those_who_asked_for_it() -> None:
    """Others get WORK_FAIL, its handle with the NUL that gearmand leaves there; the job is over."""
    farm = Farm()
    plain, asking, worker = farm.connect(), farm.connect(), farm.worker()
    handle = plain.submit(unique=b"u")
    asking.submit(unique=b"u")
    worker.grab()
    asking.send(P.OPTION_REQ, b"exceptions")
    asking.read()
    worker.send(P.WORK_EXCEPTION, handle, b"why\0")
    assert plain.read() == [packet(P.WORK_FAIL, handle)]
    assert asking.read() == [packet(P.WORK_EXCEPTION, handle, b"why\0")]
    worker.complete(handle)
    assert worker.read_types() == [P.ERROR]


def test_exceptions_can_be_on_for_all() -> None:
    """With the setting, every client gets WORK_EXCEPTION."""
    farm = Farm(settings=EngineSettings(exceptions=True))
    client, worker = farm.connect(), farm.worker()
    handle = client.submit()
    worker.grab()
    worker.send(P.WORK_EXCEPTION, handle, b"why")
    assert client.read() == [packet(P.WORK_EXCEPTION, handle, b"why")]


# Status.


def status(peer: Peer, handle: bytes) -> tuple[bytes, ...]:
    """Known, running, numerator and denominator."""
    peer.send(P.GET_STATUS, handle)
    [answer] = peer.read()
    assert answer.type == P.STATUS_RES
    assert answer.args[0] == handle.partition(b"\0")[0]
    return tuple(answer.args[1:])


def unique_status(peer: Peer, unique: bytes) -> tuple[bytes, ...]:
    """The same, and how many clients wait."""
    peer.send(P.GET_STATUS_UNIQUE, unique)
    [answer] = peer.read()
    assert answer.type == P.STATUS_RES_UNIQUE
    assert answer.args[0] == unique.partition(b"\0")[0]
    return tuple(answer.args[1:])


def test_status_follows_the_job() -> None:
    """Queued, running, with progress, queued again, ended: anyone may ask at any time."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.worker(), farm.connect()
    handle = client.submit(unique=b"u")
    assert status(other, handle) == (b"1", b"0", b"0", b"0")
    assert unique_status(other, b"u") == (b"1", b"0", b"0", b"0", b"1")
    worker.grab()
    assert status(other, handle) == (b"1", b"1", b"0", b"0")
    worker.send(P.WORK_STATUS, handle, b"1", b"3")
    assert status(other, handle) == (b"1", b"1", b"1", b"3")
    assert unique_status(other, b"u") == (b"1", b"1", b"1", b"3", b"1")
    worker.send(P.CANT_DO, b"f")
    assert status(other, handle) == (b"1", b"0", b"0", b"0")
    worker.send(P.CAN_DO, b"f")
    worker.complete(worker.grab() or b"")
    assert status(other, handle) == (b"0", b"0", b"0", b"0")
    assert unique_status(other, b"u") == (b"0", b"0", b"0", b"0", b"0")


def test_job_that_is_being_saved_or_waits_for_its_time_is_known() -> None:
    """A job is known from its submission on."""
    farm = Farm(durable=True)
    client, other = farm.connect(), farm.connect()
    client.send(P.SUBMIT_JOB_EPOCH, b"f", b"u", b"%d" % (NOON + 5), b"")
    handle = farm.saves[0].handle
    assert status(other, handle) == (b"1", b"0", b"0", b"0")
    farm.save_all()
    assert status(other, handle) == (b"1", b"0", b"0", b"0")
    assert unique_status(other, b"u") == (b"1", b"0", b"0", b"0", b"0")


def test_waiting_clients_are_counted() -> None:
    """STATUS_RES_UNIQUE says how many foreground submissions wait; background ones do not count."""
    farm = Farm()
    one, other = farm.connect(), farm.connect()
    one.submit(unique=b"u", type_=P.SUBMIT_JOB_BG)
    assert unique_status(one, b"u")[-1] == b"0"
    one.submit(unique=b"u")
    other.submit(unique=b"u")
    other.submit(unique=b"u")
    other.submit(unique=b"u")
    assert unique_status(one, b"u")[-1] == b"4"
    other.leave()
    assert unique_status(one, b"u")[-1] == b"1"


def test_newest_job_of_a_unique_counts() -> None:
    """The packet names no function: of several jobs with the unique, the last one is shown."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"f")
    client.submit(unique=b"u", function=b"f")
    client.submit(unique=b"u", function=b"g")
    worker.grab()
    assert unique_status(client, b"u")[1] == b"0"


@pytest.mark.parametrize("unique", [b"", b"-", b"x" * 100])
def test_status_of_what_has_no_unique(unique: bytes) -> None:
    """Jobs without a unique of their own cannot be found by one."""
    farm = Farm()
    client = farm.connect()
    client.submit(b"w", b"")
    client.submit(b"w", b"-")
    assert unique_status(client, unique) == (b"0", b"0", b"0", b"0", b"0")


@pytest.mark.parametrize("tail", [b"\0", b"\0\0", b"\0more"])
def test_status_ends_at_a_nul(tail: bytes) -> None:
    """What is behind a NUL is overlooked, and does not shift the fields of the reply."""
    farm = Farm()
    client = farm.connect()
    handle = client.submit(unique=b"u")
    assert status(client, handle + tail) == (b"1", b"0", b"0", b"0")
    assert unique_status(client, b"u" + tail) == (b"1", b"0", b"0", b"0", b"1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b"50%", b"50"),
        (b"abc", b"0"),
        (b"", b"0"),
        (b"-1", b"0"),
        (b" 7", b"7"),
        (b"99999999999", b"4294967295"),
        (b"9" * 8000, b"4294967295"),
        (b"1.5e3", b"1"),
    ],
)
def test_progress_is_shown_as_a_number(text: bytes, shown: bytes) -> None:
    """Clients get WORK_STATUS as it was sent; the status shows what number it starts with."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit()
    worker.grab()
    worker.send(P.WORK_STATUS, handle, text, text)
    assert client.read() == [packet(P.WORK_STATUS, handle, text, text)]
    assert status(client, handle) == (b"1", b"1", shown, shown)


# Limits.


@pytest.mark.parametrize("type_", [P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH_BG, P.SUBMIT_JOB_LOW])
def test_full_queue_refuses(type_: int) -> None:
    """A new job is refused when the function has as many jobs as it may, running ones included."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    assert client.ask(b"maxqueue f 2") == b"OK\r\n"
    client.submit(type_=P.SUBMIT_JOB_BG)
    client.submit()
    running = worker.grab() or b""
    client.send(type_, b"f", b"", b"")
    assert client.read() == [FULL]
    client.submit(function=b"g", type_=type_)
    worker.complete(running)
    client.submit(type_=type_)


def test_scheduled_jobs_are_limited_too() -> None:
    """A job for later takes a place, and needs one."""
    client = Farm().connect()
    client.ask(b"maxqueue f 1")
    for _ in range(2):
        client.send(P.SUBMIT_JOB_EPOCH, b"f", b"", b"%d" % (NOON + 5), b"")
    assert client.read() == [packet(P.JOB_CREATED, b"H:farm:1"), FULL]


def test_full_queue_can_be_joined() -> None:
    """A submission that joins a job adds none."""
    client = Farm().connect()
    client.ask(b"maxqueue f 1")
    handle = client.submit(unique=b"u")
    assert client.submit(unique=b"u") == handle


def test_each_priority_has_its_limit() -> None:
    """With three numbers, high jobs may come when normal and low ones no longer may."""
    client = Farm().connect()
    client.ask(b"maxqueue f 3 2 1")
    client.submit(type_=P.SUBMIT_JOB_LOW)
    for type_ in (P.SUBMIT_JOB_LOW, P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH):
        if type_ == P.SUBMIT_JOB_LOW:
            client.send(type_, b"f", b"", b"")
            assert client.read() == [FULL]
        else:
            client.submit(type_=type_)
            client.send(type_, b"f", b"", b"")
            assert client.read() == [FULL]


@pytest.mark.parametrize("numbers", [b"", b" 0", b" -1", b" none", b" 0 0 0"])
def test_limit_can_be_taken_away(numbers: bytes) -> None:
    """No number, zero, less, and what is no number mean no limit."""
    client = Farm().connect()
    client.ask(b"maxqueue f 1")
    assert client.ask(b"maxqueue f" + numbers) == b"OK\r\n"
    for _ in range(5):
        client.submit()


def test_two_numbers_leave_low_jobs_unlimited() -> None:
    """With only two numbers the third priority has no limit."""
    client = Farm().connect()
    client.ask(b"maxqueue f 1 1")
    for _ in range(5):
        client.submit(type_=P.SUBMIT_JOB_LOW)
    client.send(P.SUBMIT_JOB_HIGH, b"f", b"", b"")
    assert client.read() == [FULL]


def test_limit_of_a_function_to_come_is_kept() -> None:
    """A limit counts also when it was set before the function was heard of, or after it was dropped."""
    client = Farm().connect()
    client.ask(b"maxqueue f 1")
    client.ask(b"create function f")
    client.ask(b"drop function f")
    client.submit()
    client.send(P.SUBMIT_JOB, b"f", b"", b"")
    assert client.read() == [FULL]


def test_replay_has_no_limit() -> None:
    """Stored jobs come back however many they are; then the limit counts them."""
    farm = Farm(durable=True)
    client = farm.connect()
    for _ in range(3):
        client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    farm.restart()
    assert farm.connect().ask(b"status") == b"f\t3\t0\t0\n.\n"
