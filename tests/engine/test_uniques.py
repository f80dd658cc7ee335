"""The index of uniques over all functions, against the plainest possible model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gearman_twisted.engine.records import FunctionQueue, Job
from gearman_twisted.engine.uniques import Entry, Uniques
from gearman_twisted.wire.constants import Priority
from tests.kit.engine_farm import Farm, P

FUNCTIONS = [FunctionQueue(b"f"), FunctionQueue(b"g"), FunctionQueue(b"h")]

keys = st.tuples(st.sampled_from(FUNCTIONS), st.sampled_from([b"u", b"v"]))
steps = st.lists(st.tuples(st.sampled_from(["add", "offload", "revive", "remove"]), keys), max_size=60)


@given(steps)
def test_index_has_what_was_added_and_not_removed(
    steps: list[tuple[str, tuple[FunctionQueue, bytes]]],
) -> None:
    """For each function and unique the first job, until it is removed; and the newest over all functions."""
    uniques, model, jobs = Uniques(), dict[tuple[FunctionQueue, bytes], Entry](), dict[int, Job]()
    for number, (step, key) in enumerate(steps):
        function, unique = key
        entry = model.get(key)
        if step == "add":
            job = Job(number, b"", function, unique, b"", Priority.NORMAL, is_background=True)
            jobs[number] = job
            uniques.add(job)
            model.setdefault(key, job)
        elif step == "offload" and isinstance(entry, Job):
            model[key] = entry.id
            uniques.put(function, unique, entry.id)
        elif step == "revive" and isinstance(entry, int):
            model[key] = jobs[entry]
            uniques.put(function, unique, jobs[entry])
        elif step == "remove" and isinstance(entry, Job):
            del model[key]
            assert uniques.remove(entry)
            assert not uniques.remove(entry)
        for each in FUNCTIONS:
            assert uniques.get(each, unique) == model.get((each, unique))
        theirs = [(known[0], found) for known, found in model.items() if known[1] == unique]
        assert uniques.newest(unique) == (theirs[-1] if theirs else None)
    assert len(uniques) == len({unique for _, unique in model})


def test_status_of_a_unique_is_that_of_its_newest_job() -> None:
    """When the newest has ended, the one before it counts, in whatever function it is."""
    farm = Farm()
    client, workers = farm.connect(), [farm.worker(name) for name in (b"f", b"g", b"h")]
    handles = [client.submit(unique=b"u", function=name) for name in (b"f", b"g", b"h")]
    for worker, handle, number in zip(workers, handles, (b"1", b"2", b"3"), strict=True):
        assert worker.grab() == handle
        worker.send(P.WORK_STATUS, handle, number, b"9")
    client.read()
    seen = []
    for worker, handle in [*reversed(list(zip(workers, handles, strict=True)))]:
        client.send(P.GET_STATUS_UNIQUE, b"u")
        seen.append(client.read()[0].args[3])
        worker.complete(handle)
        client.read()
    assert seen == [b"3", b"2", b"1"]
