"""Rows of docs/reference/compatibility.md that no other test holds, one small example each."""

from __future__ import annotations

import pytest

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.errors import ConfigError
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import PACKETS, REQ, ErrorCode
from tests.engine.test_answers import status, unique_status
from tests.kit.engine_farm import NOON, Farm, P, Peer, packet

# As gearmand's own table has them: number, name, how many arguments, whether the last one is data.
TABLE = """
1 CAN_DO 1, 2 CANT_DO 1, 3 RESET_ABILITIES 0, 4 PRE_SLEEP 0, 5 UNUSED 0, 6 NOOP 0, 7 SUBMIT_JOB 3 data,
8 JOB_CREATED 1, 9 GRAB_JOB 0, 10 NO_JOB 0, 11 JOB_ASSIGN 3 data, 12 WORK_STATUS 3, 13 WORK_COMPLETE 2 data,
14 WORK_FAIL 1, 15 GET_STATUS 1, 16 ECHO_REQ 1 data, 17 ECHO_RES 1 data, 18 SUBMIT_JOB_BG 3 data, 19 ERROR 2,
20 STATUS_RES 5, 21 SUBMIT_JOB_HIGH 3 data, 22 SET_CLIENT_ID 1, 23 CAN_DO_TIMEOUT 2, 24 ALL_YOURS 0,
25 WORK_EXCEPTION 2 data, 26 OPTION_REQ 1, 27 OPTION_RES 1, 28 WORK_DATA 2 data, 29 WORK_WARNING 2 data,
30 GRAB_JOB_UNIQ 0, 31 JOB_ASSIGN_UNIQ 4 data, 32 SUBMIT_JOB_HIGH_BG 3 data, 33 SUBMIT_JOB_LOW 3 data,
34 SUBMIT_JOB_LOW_BG 3 data, 35 SUBMIT_JOB_SCHED 8 data, 36 SUBMIT_JOB_EPOCH 4 data,
37 SUBMIT_REDUCE_JOB 5 data, 38 SUBMIT_REDUCE_JOB_BACKGROUND 5 data, 39 GRAB_JOB_ALL 0,
40 JOB_ASSIGN_ALL 5 data, 41 GET_STATUS_UNIQUE 1, 42 STATUS_RES_UNIQUE 6
"""


def scheduled(peer: Peer, function: bytes, run_at: float) -> bytes:
    """Submit a job for a time and return its handle."""
    peer.send(P.SUBMIT_JOB_EPOCH, function, b"", b"%d" % run_at, b"")
    [created] = peer.read()
    assert created.type == P.JOB_CREATED
    return created.args[0]


# Packets.


def test_each_number_has_its_packet_and_arguments() -> None:
    """Numbers, names and arguments of all packets are those of gearmand, where PROTOCOL differs too."""
    ours = [
        f"{number} {P(number).name} {len(spec.arguments)}{' data' if spec.has_data else ''}"
        for number, spec in sorted(PACKETS.items())
    ]
    assert ours == " ".join(TABLE.split()).split(", ")


@pytest.mark.parametrize("size", [64, 100, 8191])
def test_status_of_a_long_handle_is_answered(size: int) -> None:
    """A handle or unique that no job can have is one that is not known, and no reason to close."""
    peer = Farm().connect()
    assert status(peer, b"h" * size) == (b"0",) * 4
    assert unique_status(peer, b"u" * size) == (b"0",) * 5


def test_failure_of_a_long_handle_is_not_found() -> None:
    """WORK_FAIL with a handle that no job can have is answered like one with any other wrong handle."""
    peer = Farm().connect()
    peer.send(P.WORK_FAIL, b"h" * 64)
    assert peer.read() == [packet(P.ERROR, b"JOB_NOT_FOUND", b"Job given in work result not found")]


@pytest.mark.parametrize("type_", [P.SUBMIT_REDUCE_JOB, P.SUBMIT_REDUCE_JOB_BACKGROUND])
def test_long_unique_of_a_reduce_job_is_refused(type_: int) -> None:
    """A reduce job's unique has the limit of all others, and one of 64 bytes is kept whole."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    client.send(type_, b"f", b"u" * 65, b"r", b"", b"w")
    assert client.read() == [packet(P.ERROR, b"ARGUMENT_TOO_LARGE", b"Unique value too large")]
    client.send(type_, b"f", b"u" * 64, b"r", b"", b"w")
    [created] = client.read()
    worker.send(P.GRAB_JOB_ALL)
    assert worker.read() == [packet(P.JOB_ASSIGN_ALL, created.args[0], b"f", b"u" * 64, b"r", b"w")]


def test_recurring_job_with_a_long_unique_is_refused() -> None:
    """SUBMIT_JOB_SCHED has the limit of all submissions."""
    client = Farm().connect()
    client.send(P.SUBMIT_JOB_SCHED, b"f", b"u" * 65, *[b"*"] * 5, b"w")
    assert client.read() == [packet(P.ERROR, b"ARGUMENT_TOO_LARGE", b"Unique value too large")]


@pytest.mark.parametrize("type_", [P.SUBMIT_REDUCE_JOB, P.SUBMIT_REDUCE_JOB_BACKGROUND])
def test_reduce_job_has_normal_priority(type_: int) -> None:
    """A reduce job is behind high jobs and before low ones."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    low = client.submit(type_=P.SUBMIT_JOB_LOW)
    client.send(type_, b"f", b"", b"r", b"", b"")
    [created] = client.read()
    high = client.submit(type_=P.SUBMIT_JOB_HIGH)
    assert [worker.grab() for _ in range(3)] == [high, created.args[0], low]


def test_job_without_a_unique_is_assigned_with_an_empty_one() -> None:
    """JOB_ASSIGN_UNIQ always has its four arguments."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit(b"w")
    worker.send(P.GRAB_JOB_UNIQ)
    assert worker.read() == [packet(P.JOB_ASSIGN_UNIQ, handle, b"f", b"", b"w")]


def test_refusal_takes_the_place_of_the_handle() -> None:
    """ERROR names no request: of three submissions the second is the one that the second answer is for."""
    farm = Farm()
    client = farm.connect()
    for unique in (b"a", b"u" * 65, b"b"):
        client.send(P.SUBMIT_JOB, b"f", unique, b"")
    assert client.read_types() == [P.JOB_CREATED, P.ERROR, P.JOB_CREATED]
    assert farm.closes == []


def test_exceptions_cannot_be_switched_off() -> None:
    """Once asked for they stay, and an option that does not exist changes nothing."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    for option in (b"exceptions", b"noexceptions", b"exceptions"):
        client.send(P.OPTION_REQ, option)
    assert client.read_types() == [P.OPTION_RES, P.ERROR, P.OPTION_RES]
    handle = client.submit()
    worker.grab()
    worker.send(P.WORK_EXCEPTION, handle, b"why")
    assert client.read_types() == [P.WORK_EXCEPTION]


def test_client_id_is_replaced_and_may_hold_blanks() -> None:
    """The last id counts, and stands in the list as it was sent."""
    farm = Farm()
    peer = farm.connect()
    peer.send(P.SET_CLIENT_ID, b"old")
    peer.send(P.SET_CLIENT_ID, b"a b")
    assert peer.ask(b"workers") == b"1 192.0.2.1 a b :\n.\n"


def test_clients_are_served_in_the_order_in_which_they_came() -> None:
    """Of several clients of a job, the first one to come is told first."""
    farm = Farm()
    clients = [farm.connect() for _ in range(3)]
    worker = farm.worker()
    [handle] = {client.submit(unique=b"u") for client in clients}
    worker.grab()
    request = encode(REQ, P.WORK_COMPLETE, handle, b"")
    out = farm.engine.receive(worker.number, Decoder(REQ).feed(request), farm.now)
    assert list(out.writes) == [client.number for client in clients]


# Handles.


def test_handles_fit_libgearmans_field() -> None:
    """A prefix that would make handles of more than 63 bytes is refused."""
    longest = b"H:" + b"h" * 43
    farm = Farm(settings=EngineSettings(handle_prefix=longest))
    assert farm.connect().submit() == longest + b":1"
    # The clock in microseconds, with which the service begins, will have 16 digits until the year 2286.
    assert len(longest + b":%d" % 10**16) <= 63
    with pytest.raises(ConfigError, match="handle_prefix takes 1 to 45"):
        EngineSettings(handle_prefix=longest + b"h")


def test_refused_job_has_used_its_number_up() -> None:
    """The number of a job that the store refused is not given again, as its save may have come through."""
    farm = Farm(durable=True)
    client = farm.connect()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.fail_saves()
    assert client.read_types() == [P.ERROR]
    assert client.submit() == b"H:farm:2"


@pytest.mark.parametrize("wrong", [b"h:farm:1", b"H:farm:01", b"H:farm:1 ", b"1", b""])
def test_handles_are_compared_to_the_byte(wrong: bytes) -> None:
    """Nothing but the handle itself names its job."""
    client = Farm().connect()
    assert client.submit() == b"H:farm:1"
    assert status(client, wrong) == (b"0",) * 4


# Uniques.


def test_job_with_the_unique_dash_joins_no_other_kind() -> None:
    """A job of the unique ``-`` and one whose unique is its workload are two."""
    client = Farm().connect()
    assert client.submit(b"w", b"-") != client.submit(b"w", b"w")


def test_foreground_client_that_joins_a_background_job_hears_all() -> None:
    """Who joins in the foreground gets the worker's packets, and the first submitter none."""
    farm = Farm()
    owner, guest, worker = farm.connect(), farm.connect(), farm.worker()
    handle = owner.submit(unique=b"u", type_=P.SUBMIT_JOB_BG)
    assert guest.submit(unique=b"u") == handle
    worker.grab()
    worker.send(P.WORK_DATA, handle, b"x")
    worker.complete(handle, b"r")
    assert guest.read_types() == [P.WORK_DATA, P.WORK_COMPLETE]
    assert owner.read() == []


def test_joined_background_job_leaves_the_store_when_it_ends() -> None:
    """A stored job whose foreground guest left while it ran is done when it is done: it never runs again."""
    farm = Farm(durable=True)
    owner, guest, worker = farm.connect(), farm.connect(), farm.worker()
    owner.send(P.SUBMIT_JOB_BG, b"f", b"u", b"")
    farm.save_all()
    handle = guest.submit(unique=b"u")
    assert worker.grab() == handle
    guest.leave()
    worker.complete(handle)
    farm.restart()
    assert farm.worker().grab() is None


# Which job.


def test_scheduled_jobs_do_not_cost_a_turn() -> None:
    """A function with nothing but a job for later keeps its place when a grab passes it by."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"A", b"B")
    later = scheduled(client, b"B", NOON + 5)
    assert worker.grab() is None
    farm.wait(5)
    client.submit(function=b"A")
    assert worker.grab() == later


def test_sleep_takes_no_job_away() -> None:
    """A worker that goes to sleep loses no job, whatever was cancelled or abandoned before it."""
    farm = Farm()
    client, gone, worker = farm.connect(), farm.connect(), farm.worker(b"f", b"g")
    cancelled = client.submit(function=b"g")
    gone.submit(function=b"g")
    kept = client.submit(function=b"f", type_=P.SUBMIT_JOB_HIGH)
    gone.leave()
    operator = farm.connect()
    assert operator.ask(b"cancel job " + cancelled) == b"OK\r\n"
    assert worker.sleep() == [P.NOOP]
    assert worker.grab() == kept
    assert worker.grab() is None


# Waking.


def test_worker_that_was_kept_from_sleep_is_up() -> None:
    """Who got NOOP for its PRE_SLEEP does not sleep: the next job sends it no second one."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    client.submit()
    assert worker.sleep() == [P.NOOP]
    client.submit()
    assert worker.read() == []


def test_job_for_later_wakes_nobody_yet() -> None:
    """A sleeping worker hears of a scheduled job when its time comes, once."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    assert worker.sleep() == []
    scheduled(client, b"f", NOON + 5)
    assert worker.read() == []
    farm.wait(5)
    assert worker.read_types() == [P.NOOP]


# Abilities.


def test_function_stays_known_without_jobs_and_workers() -> None:
    """Submissions and registrations make functions, which stay listed; questions do not make any."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"g")
    client.submit(function=b"f")
    client.leave()
    worker.leave()
    operator = farm.connect()
    operator.send(P.CANT_DO, b"h")
    assert operator.ask(b"status") == b"g\t0\t0\t0\nf\t0\t0\t0\n.\n"


@pytest.mark.parametrize("name", [b"F", b"f\0", b"f "])
def test_function_names_are_compared_to_the_byte(name: bytes) -> None:
    """Case, blanks and a NUL at the end of CAN_DO are part of the name."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(name)
    client.submit(function=b"f")
    assert worker.grab() is None


# Lost workers.


@pytest.mark.parametrize("loss", ["leave", "RESET_ABILITIES", "timeout"])
def test_job_whose_worker_is_lost_takes_its_place_at_the_end(loss: str) -> None:
    """However a job was taken from its worker, it is behind those that waited, with an attempt more."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.connect(), farm.worker()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"1000")
    first, second = client.submit(), client.submit()
    assert worker.grab() == first
    if loss == "leave":
        worker.leave()
    elif loss == "timeout":
        farm.wait(1)
    else:
        worker.send(P.RESET_ABILITIES)
    assert client.read() == []
    assert client.ask(b"show jobs").startswith(first + b"\t1\t")
    assert [other.grab(), other.grab()] == [second, first]


def test_attempts_are_counted_beyond_255() -> None:
    """The list of jobs says how often a job was taken away, however often that was."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    handle = client.submit()
    for _ in range(300):
        assert worker.grab() == handle
        worker.send(P.CANT_DO, b"f")
        worker.send(P.CAN_DO, b"f")
    assert client.ask(b"show jobs") == handle + b"\t300\t0\t0\n.\n"


def test_time_limit_goes_with_its_worker() -> None:
    """A worker that left leaves no timer behind, though its job waits again."""
    farm = Farm()
    client, worker = farm.connect(), farm.connect()
    worker.send(P.CAN_DO_TIMEOUT, b"f", b"1000")
    client.submit()
    worker.grab()
    worker.leave()
    assert farm.engine.next_deadline() == float("inf")


# Status.


def test_progress_of_a_background_job_is_kept() -> None:
    """Nobody is sent a background job's progress, but whoever asks is told."""
    farm = Farm()
    client, worker, other = farm.connect(), farm.worker(), farm.connect()
    handle = client.submit(unique=b"u", type_=P.SUBMIT_JOB_BG)
    worker.grab()
    worker.send(P.WORK_STATUS, handle, b"2", b"3")
    assert client.read() == []
    assert status(other, handle) == (b"1", b"1", b"2", b"3")
    assert unique_status(other, b"u") == (b"1", b"1", b"2", b"3", b"0")


def test_cancelled_job_is_known_until_its_worker_ends() -> None:
    """A cancelled job that waited is not known any more; one that runs is until its worker is done."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    running, queued = client.submit(), client.submit()
    worker.grab()
    operator = farm.connect()
    for handle in (running, queued):
        operator.ask(b"cancel job " + handle)
    assert status(operator, running) == (b"1", b"1", b"0", b"0")
    assert status(operator, queued) == (b"0",) * 4
    worker.complete(running)
    assert status(operator, running) == (b"0",) * 4


def test_full_queue_of_abandoned_jobs_is_not_full() -> None:
    """A job that nobody waits for any more takes no place."""
    farm = Farm()
    client, gone = farm.connect(), farm.connect()
    client.ask(b"maxqueue f 1")
    gone.submit()
    gone.leave()
    client.submit()


def test_limits_are_not_kept_over_a_restart() -> None:
    """After a restart no function has a limit."""
    farm = Farm(durable=True)
    farm.connect().ask(b"maxqueue f 1")
    farm.restart()
    client = farm.connect()
    assert client.submit() != client.submit()


def test_job_for_later_is_counted() -> None:
    """A job that waits for its time is one of its function, known, not running, and of normal priority."""
    farm = Farm()
    client = farm.connect()
    handle = scheduled(client, b"f", NOON + 5)
    assert client.ask(b"status") == b"f\t1\t0\t0\n.\n"
    assert client.ask(b"prioritystatus") == b"f\t0\t1\t0\t0\n.\n"
    assert status(client, handle) == (b"1", b"0", b"0", b"0")


# The text protocol.


def test_tab_does_not_separate_words() -> None:
    """Blanks only separate words."""
    answer = Farm().connect().ask(b"show\tjobs")
    assert answer == b"ERR UNKNOWN_COMMAND Unknown+server+commandshow\tjobs\r\n"


def test_functions_of_a_worker_are_listed_in_the_order_of_their_turns() -> None:
    """The list of workers has the newest function first, and the one that was just served last."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(b"A", b"B", b"C")
    client.submit(function=b"C")
    assert worker.ask(b"workers").splitlines()[-2] == b"2 192.0.2.1 - : C B A"
    worker.grab()
    assert worker.ask(b"workers").splitlines()[-2] == b"2 192.0.2.1 - : B A C"


def test_address_of_an_ipv6_peer_is_shown() -> None:
    """The list of workers has the address as it is written."""
    farm = Farm()
    peer = farm.connect()
    farm.perform(farm.engine.connect(99, "2001:db8::1", farm.now))
    assert b"99 2001:db8::1 - :\n" in peer.ask(b"workers")


def test_cancelled_job_is_not_marked() -> None:
    """The third column is 0 for a cancelled job that still runs too, and one that was queued is gone."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    running, queued = client.submit(), client.submit()
    worker.grab()
    operator = farm.connect()
    for handle in (running, queued):
        operator.ask(b"cancel job " + handle)
    assert operator.ask(b"show jobs") == running + b"\t0\t0\t0\n.\n"


# The store.


def test_attempts_and_progress_are_not_kept_over_a_restart() -> None:
    """After a restart a job has had no attempt, and got nowhere."""
    farm = Farm(durable=True)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    [created] = client.read()
    handle = created.args[0]
    worker.grab()
    worker.leave()
    worker = farm.worker()
    worker.grab()
    worker.send(P.WORK_STATUS, handle, b"1", b"2")
    assert client.ask(b"show jobs") == handle + b"\t1\t0\t1\n.\n"
    farm.restart()
    client = farm.connect()
    assert client.ask(b"show jobs") == handle + b"\t0\t0\t1\n.\n"
    assert status(client, handle) == (b"1", b"0", b"0", b"0")


def test_job_whose_end_is_not_stored_runs_again() -> None:
    """A server that dies between a job's end and the store's commit of it runs the job again."""
    farm = Farm(durable=True)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    handle = worker.grab()
    kept = dict(farm.kept)
    worker.complete(handle or b"")
    farm.kept = kept
    farm.restart()
    assert farm.worker().grab() == handle


def test_job_whose_row_was_deleted_runs() -> None:
    """What somebody takes out of the store is still in the server, which runs it, and forgets it in peace."""
    farm = Farm(durable=True)
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    farm.kept.clear()
    handle = worker.grab()
    assert handle is not None
    worker.complete(handle)
    assert worker.read() == []
    assert worker.grab() is None


@pytest.mark.parametrize("ending", ["cancel", "attempts"])
def test_job_that_the_server_ends_leaves_the_store(ending: str) -> None:
    """A job that is cancelled, or that used up its attempts, does not come back."""
    farm = Farm(durable=True, settings=EngineSettings(handle_prefix=b"H:farm", job_retries=1))
    client, worker = farm.connect(), farm.worker()
    client.send(P.SUBMIT_JOB_BG, b"f", b"", b"")
    farm.save_all()
    [created] = client.read()
    if ending == "cancel":
        assert client.ask(b"cancel job " + created.args[0]) == b"OK\r\n"
    else:
        worker.grab()
        worker.leave()
    assert farm.kept == {}


# Scheduled jobs.


def test_job_whose_time_came_is_behind_those_that_waited() -> None:
    """A scheduled job takes its place when it is due, not when it was submitted."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker()
    due = scheduled(client, b"f", NOON + 5)
    waiting = client.submit()
    farm.wait(5)
    after = client.submit()
    assert [worker.grab() for _ in range(3)] == [waiting, due, after]


# libgearman.

# Of gearman_return_t, those that stand for what a server may say of a request.
LIBGEARMAN_CODES = """
INVALID_MAGIC INVALID_COMMAND INVALID_PACKET INVALID_ARGUMENT ARGUMENT_TOO_LARGE UNKNOWN_OPTION JOB_NOT_FOUND
QUEUE_ERROR SHUTDOWN
"""


def test_codes_are_those_of_libgearman() -> None:
    """libgearman makes its return code of the code in an ERROR; it has one for each of ours."""
    codes = {value.decode() for name, value in vars(ErrorCode).items() if name.isupper()}
    assert codes <= set(LIBGEARMAN_CODES.split())


def test_walk_of_a_job_through_libgearman() -> None:
    """The packets of a whole job between libgearman's client and its worker, nothing between them."""
    farm = Farm()
    client, worker = farm.connect(), farm.connect()
    worker.send(P.SET_CLIENT_ID, b"me")
    worker.send(P.OPTION_REQ, b"exceptions")
    worker.send(P.CAN_DO_TIMEOUT, b"g", b"5000")
    worker.send(P.CAN_DO, b"f")
    worker.send(P.GRAB_JOB_ALL)
    worker.send(P.PRE_SLEEP)
    assert worker.read() == [packet(P.OPTION_RES, b"exceptions"), packet(P.NO_JOB)]
    client.send(P.SUBMIT_JOB, b"f", b"u", b"data")
    [created] = client.read()
    handle = created.args[0]
    assert created == packet(P.JOB_CREATED, handle)
    assert worker.read() == [packet(P.NOOP)]
    worker.send(P.GRAB_JOB_ALL)
    assert worker.read() == [packet(P.JOB_ASSIGN_UNIQ, handle, b"f", b"u", b"data")]
    told = [
        packet(P.WORK_STATUS, handle, b"1", b"2"),
        packet(P.WORK_DATA, handle, b"x"),
        packet(P.WORK_COMPLETE, handle, b"r"),
    ]
    for sent in told:
        worker.send(sent.type, *sent.args)
    assert client.read() == told
    assert status(client, handle) == (b"0",) * 4
    worker.send(P.GRAB_JOB_ALL)
    worker.send(P.PRE_SLEEP)
    assert worker.read() == [packet(P.NO_JOB)]
    for peer in (client, worker):
        peer.leave()
    assert farm.leftovers() == {}
