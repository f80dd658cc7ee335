"""Every packet and every text command costs the same, however much the server has; or as much as its answer.

All are sent to a server that has 200 of everything, and to one that has 2,000, and their steps are counted;
see ``tests.kit.engine_bench`` for what is counted, and what is not. ``test_scaling`` tries larger crowds of
one kind each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.constants import PACKETS, Direction, PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.engine_bench import CLIENT, FIRST_OF_CROWD, WORKER, Bench, opcodes, watch

P = PacketType
FEW, MANY = 200, 2_000
# Branches differ a little, and heaps grow by the logarithm. A scan costs some thousands.
FACTOR, EXTRA = 1.5, 100

BUSY, LEAVING, SLOW, IDLE = 3, 4, 5, 6


class Crowd(Bench):
    """A server that has so many functions, workers, clients, and jobs of all kinds and in all states.

    WORKER has many functions, and jobs of ``mine``. IDLE could do jobs of many functions. BUSY runs jobs
    of ``busy``; SLOW has lost jobs of ``late`` to its time limit. LEAVING has one function and a job of it. A
    job of ``some`` with the unique ``u`` waits.
    """

    def __init__(self, count: int, *, is_durable: bool) -> None:
        self.saves: list[int] = []
        self.late: list[bytes] = []
        super().__init__()
        if is_durable:
            self.restart(EngineSettings(memory=0))
            self.engine.connect(WORKER, "-", self.now)
            for number in range(count):
                self.restore(b"stored%d" % number, b"stored%d" % number)
                self.restore(b"stored", b"u%d" % number)
        for peer in (BUSY, LEAVING, SLOW, IDLE):
            self.engine.connect(peer, "-", self.now)
        self.send(SLOW, P.CAN_DO_TIMEOUT, b"late", b"1000")
        self.send(BUSY, P.CAN_DO_TIMEOUT, b"busy", b"60000")
        for number in range(count):
            self._add(number, FIRST_OF_CROWD + number)
        self.save_all()
        self.now += 2
        self.engine.tick(self.now)
        self.submit(b"some", b"u")
        self.submit(b"leaving")
        self.send(LEAVING, P.CAN_DO, b"leaving")
        self.send(LEAVING, P.GRAB_JOB)
        self.send(WORKER, P.CAN_DO, b"mine")
        for _ in range(30):
            self.submit(b"mine")
        # Whoever has many functions takes note of those that have jobs when it looks for one, once.
        self.mine = [self.grab() for _ in range(10)]
        assert all(handle.startswith(b"H:") for handle in self.mine)
        watch(self.engine)

    def _add(self, number: int, crowd: int) -> None:
        """Add one of everything."""
        send = self.send
        self.engine.connect(crowd, "-", self.now)
        send(crowd, P.CAN_DO, b"sleepers")
        send(crowd, P.PRE_SLEEP)
        send(crowd, P.SUBMIT_JOB, b"joined", b"one", b"w")
        send(IDLE, P.CAN_DO, b"ready%d" % number)
        send(WORKER, P.CAN_DO, b"mine%d" % number)
        self.busy = self.submit(b"busy", b"busy%d" % number)
        self.late.append(self.submit(b"late", b"late%d" % number))
        for function in (b"queued", b"ready%d" % number, b"nobody%d" % number):
            self.submit(function, b"%b %d" % (function, number))
        self.submit(b"same%d" % number, b"same")
        send(CLIENT, P.SUBMIT_JOB_BG, b"background", b"b%d" % number, b"w")
        send(CLIENT, P.SUBMIT_JOB_EPOCH, b"scheduled", b"s%d" % number, b"2000000000", b"w")
        send(CLIENT, P.SUBMIT_JOB_SCHED, b"recurring", b"r%d" % number, *b"0 0 1 * *".split(), b"")
        send(CLIENT, P.TEXT_LINE, b"maxqueue limited%d 5" % number)
        send(BUSY, P.GRAB_JOB)
        send(SLOW, P.GRAB_JOB)

    def send(self, number: int, type_: int, *args: bytes) -> bytes:
        """Send a packet; return all that it was answered to its sender."""
        out = self.engine.receive(number, [Packet(type_, list(args))], self.now)
        self.saves += [job.id for job in out.saves]
        answer = [*out.writes[number]]
        while self.engine.is_listing(number):
            answer += self.engine.go_on(number, self.now).writes[number]
        return b"".join(answer)

    def save_all(self) -> None:
        """The store has saved all that it was asked for."""
        self.engine.saved(self.saves, self.now)
        self.saves.clear()


Case = tuple[int, Callable[[Crowd], tuple[bytes, ...]]]


def fixed(*args: bytes) -> Callable[[Crowd], tuple[bytes, ...]]:
    """Arguments that are always the same."""
    return lambda _crowd: args


def of_mine(*args: bytes) -> Callable[[Crowd], tuple[bytes, ...]]:
    """A job that WORKER runs, the next one each time."""
    return lambda crowd: (crowd.mine.pop(), *args)


def of_late(*args: bytes) -> Callable[[Crowd], tuple[bytes, ...]]:
    """A job that a time limit took from SLOW, the next one each time."""
    return lambda crowd: (crowd.late.pop(), *args)


# Sent in this order to the same server.
CASES: dict[PacketType, list[Case]] = {
    P.TEXT_LINE: [
        (CLIENT, fixed(line))
        for line in (
            *(b"version", b"verbose", b"getpid", b"ready", b"shutdown", b"nonsense", b"show nonsense"),
            *(b"create function new", b"create function new", b"drop function new", b"drop function mine"),
            *(b"drop function nobody's", b"maxqueue mine 100", b"maxqueue new", b"cancel job H:nobody:1"),
            *(b"cancel unique some nothing", b"cancel unique same5 same", b"cancel unique recurring r5"),
        )
    ],
    P.BAD_PACKET: [(CLIENT, fixed(b"INVALID_PACKET", b"text"))],
    P.CAN_DO: [(WORKER, fixed(b"another")), (WORKER, fixed(b"mine")), (CLIENT, fixed(b"sleepers"))],
    P.CAN_DO_TIMEOUT: [(WORKER, fixed(b"another", b"60000"))],
    P.CANT_DO: [(WORKER, fixed(b"another")), (WORKER, fixed(b"nobody's")), (CLIENT, fixed(b"sleepers"))],
    P.PRE_SLEEP: [(WORKER, fixed()), (LEAVING, fixed()), (LEAVING, fixed())],
    P.GRAB_JOB: [(WORKER, fixed()), (LEAVING, fixed())],
    P.GRAB_JOB_UNIQ: [(WORKER, fixed()), (LEAVING, fixed())],
    P.GRAB_JOB_ALL: [(WORKER, fixed()), (LEAVING, fixed())],
    P.WORK_STATUS: [
        (WORKER, lambda crowd: (crowd.mine[0], b"1", b"2")),
        (BUSY, lambda crowd: (crowd.busy, b"1", b"2")),
        (SLOW, of_late(b"1", b"2")),
        (CLIENT, fixed(b"H:nobody:1", b"1", b"2")),
    ],
    P.WORK_DATA: [(WORKER, lambda crowd: (crowd.mine[0], b"d")), (CLIENT, fixed(b"H:nobody:1", b"d"))],
    P.WORK_WARNING: [(WORKER, lambda crowd: (crowd.mine[0], b"d")), (SLOW, of_late(b"d"))],
    P.WORK_COMPLETE: [
        (WORKER, of_mine(b"r")),
        (BUSY, lambda crowd: (crowd.busy, b"r")),
        (SLOW, of_late(b"r")),
    ],
    P.WORK_EXCEPTION: [(WORKER, of_mine(b"e")), (SLOW, of_late(b"e"))],
    P.WORK_FAIL: [(WORKER, of_mine()), (SLOW, of_late())],
    P.GET_STATUS: [
        (CLIENT, lambda crowd: (crowd.late[-1],)),
        (CLIENT, fixed(b"H:nobody:1")),
        (CLIENT, fixed(b"H:localhost:9")),
    ],
    P.GET_STATUS_UNIQUE: [(CLIENT, fixed(unique)) for unique in (b"u", b"same", b"one", b"u7", b"r7", b"no")],
    P.SUBMIT_JOB: [
        (CLIENT, fixed(b"some", b"new", b"w")),
        (CLIENT, fixed(b"some", b"u", b"w")),
        (CLIENT, fixed(b"some", b"-", b"w")),
        (CLIENT, fixed(b"stored", b"u3", b"w")),
        (CLIENT, fixed(b"sleepers", b"", b"w")),
        (CLIENT, fixed(b"never named", b"", b"w")),
    ],
    P.SUBMIT_JOB_BG: [(CLIENT, fixed(b"some", b"", b"w")), (CLIENT, fixed(b"ready5", b"", b"w"))],
    P.SUBMIT_JOB_HIGH: [(CLIENT, fixed(b"sleepers", b"", b"w"))],
    P.SUBMIT_JOB_HIGH_BG: [(CLIENT, fixed(b"some", b"", b"w"))],
    P.SUBMIT_JOB_LOW: [(CLIENT, fixed(b"some", b"", b"w"))],
    P.SUBMIT_JOB_LOW_BG: [(CLIENT, fixed(b"some", b"", b"w"))],
    P.SUBMIT_JOB_EPOCH: [(CLIENT, fixed(b"some", b"", b"2000000000", b"w"))],
    P.SUBMIT_JOB_SCHED: [
        (CLIENT, fixed(b"some", b"r", *b"0 0 1 * *".split(), b"w")),
        (CLIENT, fixed(b"some", b"r", *b"0 0 2 * *".split(), b"w")),
    ],
    P.SUBMIT_REDUCE_JOB: [(CLIENT, fixed(b"some", b"", b"reducer", b"", b"w"))],
    P.SUBMIT_REDUCE_JOB_BACKGROUND: [(CLIENT, fixed(b"some", b"", b"reducer", b"", b"w"))],
    P.ECHO_REQ: [(CLIENT, fixed(b"w"))],
    P.SET_CLIENT_ID: [(CLIENT, fixed(b"id"))],
    P.OPTION_REQ: [(CLIENT, fixed(b"exceptions")), (CLIENT, fixed(b"nonsense"))],
    P.ALL_YOURS: [(CLIENT, fixed())],
    P.UNUSED: [(CLIENT, fixed())],
    P.RESET_ABILITIES: [(LEAVING, fixed()), (CLIENT, fixed())],
    P.BAD_STREAM: [(LEAVING, fixed(b"INVALID_MAGIC", b"text"))],
}

# What costs as much as its answer, or as what the peer itself had: it may grow, and does.
LISTS: dict[tuple[int, int, tuple[bytes, ...]], str] = {
    (CLIENT, P.TEXT_LINE, (b"status",)): "a row for each function",
    (CLIENT, P.TEXT_LINE, (b"prioritystatus",)): "a row for each function",
    (CLIENT, P.TEXT_LINE, (b"workers",)): "a row for each connection, with its functions",
    (CLIENT, P.TEXT_LINE, (b"show jobs",)): "a row for each job",
    (CLIENT, P.TEXT_LINE, (b"show unique jobs",)): "a row for each job",
    (CLIENT, P.TEXT_LINE, (b"show scheduled",)): "a row for each scheduled job",
    (CLIENT, P.TEXT_LINE, (b"cancel unique joined one",)): "a packet for each client that waits",
    (WORKER, P.RESET_ABILITIES, ()): "gives up all functions of the worker",
    (BUSY, P.CANT_DO, (b"busy",)): "gives up the jobs that the worker runs of the function",
}


def costs(crowd: Crowd) -> dict[str, int]:
    """What each packet and command costs, and the other calls of the engine."""
    found: dict[str, int] = {}
    engine = crowd.engine
    for type_, cases in CASES.items():
        for number, make in cases:
            args = make(crowd)
            name = f"{len(found)} {type_.name} {number} {b' '.join(args).decode()}".replace(
                ":localhost:", ":"
            )
            name = name.partition(" H:")[0]
            found[name] = opcodes(partial(crowd.send, number, type_, *args))
    for reply, spec in PACKETS.items():
        if spec.direction is Direction.RESPONSE:
            found[PacketType(reply).name] = opcodes(partial(crowd.send, CLIENT, reply))
    newcomer = 1_000_000
    calls: dict[str, Callable[[], object]] = {
        "connect": partial(engine.connect, newcomer, "-", crowd.now),
        "disconnect": partial(engine.disconnect, newcomer, crowd.now),
        "disconnect a worker": partial(engine.disconnect, LEAVING, crowd.now),
        "saved": partial(engine.saved, crowd.saves[:1], crowd.now),
        "save failed": partial(engine.save_failed, crowd.saves[1:2], "disk full", crowd.now),
        "tick": partial(engine.tick, crowd.now),
        "next deadline": engine.next_deadline,
    }
    return found | {name: opcodes(call) for name, call in calls.items()}


@pytest.mark.parametrize("is_durable", [False, True])
def test_steps_do_not_grow_with_what_the_server_has(is_durable: bool) -> None:
    """No handler scans functions, jobs, workers, uniques or schedules."""
    few, many = (costs(Crowd(count, is_durable=is_durable)) for count in (FEW, MANY))
    assert few.keys() == many.keys()
    grown = {name: (few[name], cost) for name, cost in many.items() if cost > FACTOR * few[name] + EXTRA}
    assert grown == {}


def test_lists_cost_their_rows() -> None:
    """What is exempt is so for a reason: it grows. What is counted is what ``watch`` is to show."""
    few, many = Crowd(FEW, is_durable=False), Crowd(3 * FEW, is_durable=False)
    for (number, type_, args), reason in LISTS.items():
        small, large = (opcodes(partial(crowd.send, number, type_, *args)) for crowd in (few, many))
        assert large > FACTOR * small + EXTRA, (args, reason)


def test_every_packet_is_counted() -> None:
    """A packet that is added is added here, too."""
    requests = {type_ for type_, spec in PACKETS.items() if spec.direction is not Direction.RESPONSE}
    assert requests <= set(CASES)


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    """A server to look at."""
    return Crowd(FEW, is_durable=False)


@pytest.mark.parametrize(
    "scan",
    [
        lambda crowd: list(crowd.engine.inspection.jobs),
        lambda crowd: min(crowd.engine.inspection.jobs.values(), key=id),
        lambda crowd: dict(crowd.engine.inspection.functions),
        lambda crowd: {**crowd.engine.inspection.functions},
        lambda crowd: sorted(crowd.engine.inspection.functions[b"sleepers"].workers, key=id),
        lambda crowd: b"" in crowd.engine.inspection.functions[b"queued"].lanes[1]._front,
        lambda crowd: list(reversed(crowd.engine.inspection.functions[b"sleepers"].workers)),
    ],
)
def test_loops_in_c_are_counted(scan: Callable[[Crowd], object], crowd: Crowd) -> None:
    """A handler that scans without a loop of its own is found as well."""
    assert opcodes(partial(scan, crowd)) > FEW
