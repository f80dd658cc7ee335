"""The order in which a worker of many functions is served, against the plainest possible model."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from gearman_twisted.engine import queues
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.constants import Priority
from tests.kit.engine_farm import Farm, P

SUBMITS = {
    P.SUBMIT_JOB_HIGH_BG: Priority.HIGH,
    P.SUBMIT_JOB_BG: Priority.NORMAL,
    P.SUBMIT_JOB_LOW_BG: Priority.LOW,
}
# Enough that a worker of all of them is served through the index, and not by walking its list.
FUNCTIONS = [b"f%d" % number for number in range(2 * queues.FEW_ABILITIES)]

# Two workers, who take jobs from each other; of some functions only, so that most of a long list has no jobs
# and the rest has several.
functions = st.sampled_from(FUNCTIONS[:5] + FUNCTIONS[-1:])
workers = st.sampled_from([0, 0, 1])
steps = st.lists(
    st.tuples(workers, st.sampled_from(list(SUBMITS)), functions)
    | st.tuples(workers, st.sampled_from([P.CAN_DO, P.CANT_DO]), functions)
    | st.tuples(workers, st.sampled_from([P.GRAB_JOB_UNIQ, P.PRE_SLEEP]), st.just(b"")),
    min_size=10,
    max_size=60,
)
abilities = st.lists(functions, max_size=30) | st.permutations(FUNCTIONS)


class NaiveWorker:
    """A worker's list of functions, newest first, and all jobs in the order of their submission."""

    def __init__(self, abilities: list[bytes], jobs: list[tuple[Priority, bytes, bytes]], order: str) -> None:
        self.abilities: list[bytes] = []
        self.jobs = jobs
        self.order = order
        for function in abilities:
            self.can_do(function)

    def can_do(self, function: bytes) -> None:
        """A function comes first."""
        self.cant_do(function)
        self.abilities.insert(0, function)

    def cant_do(self, function: bytes) -> None:
        """A function is no longer there."""
        self.abilities = [name for name in self.abilities if name != function]

    def next_job(self) -> tuple[Priority, bytes, bytes] | None:
        """The first job of the first function of the first priority that has one."""
        lanes = [(priority, function) for priority in Priority for function in self.abilities]
        if self.order == "1.1":
            lanes.sort(key=lambda lane: self.abilities.index(lane[1]))
        for lane in lanes:
            for job in self.jobs:
                if job[:2] == lane:
                    return job
        return None

    def grab(self) -> bytes | None:
        """Take that job; its function goes to the end, unless the order is the old one."""
        job = self.next_job()
        if job is None:
            return None
        self.jobs.remove(job)
        if self.order == "2.0":
            self.abilities.remove(job[1])
            self.abilities.append(job[1])
        return job[2]


@settings(deadline=None)
@given(st.sampled_from(["2.0", "1.1"]), abilities, abilities, steps)
def test_worker_of_many_functions_is_served_as_one_of_few(
    order: str, abilities: list[bytes], others: list[bytes], script: list[tuple[int, P, bytes]]
) -> None:
    """However many functions a worker has, and however many have jobs, they take turns alike."""
    farm = Farm(settings=EngineSettings(handle_prefix=b"H:farm", order=order))
    client = farm.connect()
    jobs: list[tuple[Priority, bytes, bytes]] = []
    both = [(farm.connect(), NaiveWorker(names, jobs, order)) for names in (abilities, others)]
    for (worker, _), names in zip(both, (abilities, others), strict=True):
        for function in names:
            worker.send(P.CAN_DO, function)
    for who, type_, function in [*script, *[(0, P.GRAB_JOB_UNIQ, b"")] * 40]:
        worker, naive = both[who]
        for peer, _ in both:
            peer.read()
        if type_ in SUBMITS:
            jobs.append((SUBMITS[type_], function, client.submit(type_=type_, function=function)))
        elif type_ == P.CAN_DO:
            worker.send(type_, function)
            naive.can_do(function)
        elif type_ == P.CANT_DO:
            worker.send(type_, function)
            naive.cant_do(function)
        elif type_ == P.PRE_SLEEP:
            assert worker.sleep() == ([P.NOOP] if naive.next_job() else [])
        else:
            handle = worker.grab()
            assert handle == naive.grab()
            if handle:
                # Ended at once, or it would be queued again when its function is given up.
                worker.complete(handle)


def test_many_functions_take_turns() -> None:
    """A worker of many functions, few of which have jobs, serves these in turns."""
    farm = Farm()
    client, worker = farm.connect(), farm.worker(*FUNCTIONS)
    first, last = ([client.submit(function=name) for _ in range(3)] for name in (FUNCTIONS[0], FUNCTIONS[-1]))
    turns = [handle for pair in zip(last, first, strict=True) for handle in pair]
    assert [worker.grab() for _ in turns] == turns


def test_many_cancelled_jobs_leave_the_others_in_order() -> None:
    """When dead entries are cleared out of a queue, the living ones stay as they were."""
    farm = Farm()
    client, worker, operator = farm.connect(), farm.worker(), farm.connect()
    handles = [client.submit(type_=P.SUBMIT_JOB_BG) for _ in range(400)]
    for number, handle in enumerate(handles):
        if number % 4:
            operator.ask(b"cancel job " + handle)
    assert [worker.grab() for _ in range(101)] == [*handles[::4], None]


@given(st.lists(st.integers(min_value=0, max_value=5) | st.none(), max_size=200))
def test_cancelled_jobs_are_skipped(script: list[int | None]) -> None:
    """Whatever jobs are cancelled in between, the others come out in their order."""
    farm = Farm()
    client, worker, operator = farm.connect(), farm.worker(), farm.connect()
    queued: list[bytes] = []
    for step in script:
        if step is None:
            assert worker.grab() == (queued.pop(0) if queued else None)
        elif step < len(queued) and step % 2:
            assert operator.ask(b"cancel job " + queued.pop(step)) == b"OK\r\n"
        else:
            queued.append(client.submit(type_=P.SUBMIT_JOB_BG))
    assert [worker.grab() for _ in range(len(queued) + 1)] == [*queued, None]
