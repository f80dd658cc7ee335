"""What every job store must do, as checks for any test runner and any package's stores.

A check is a coroutine function that takes ``make_store`` and raises ``AssertionError`` with a description of
the fault. The runner is up to you, since pytest and trial have different kinds of asynchronous tests::

    @pytest.mark.parametrize("check", CHECKS, ids=name_of)          # pytest, with pytest-twisted
    @pytest_twisted.ensureDeferred
    async def test_store_conforms(check, tmp_path):
        await check(lambda: open_store(f"mine:{tmp_path}/jobs", reactor))

    class MyStoreTests(trial.unittest.TestCase):                    # trial
        def test_conforms(self):
            return Deferred.fromCoroutine(run_all(self.make_empty_storage))

``make_store`` returns a new store, not yet open, for the same storage each time; the storage is empty
before a check. A check closes each store before it opens the next. A store whose ``durable`` is false
runs ``LIFECYCLE_CHECKS`` only.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence

from gearman_twisted.errors import StoreError
from gearman_twisted.store.contract import IJobStore, StoredJob

__all__ = ["CHECKS", "DURABILITY_CHECKS", "LIFECYCLE_CHECKS", "name_of", "run_all"]

MakeStore = Callable[[], IJobStore]
Check = Callable[[MakeStore], Awaitable[None]]


def a_job(number: int, **fields: object) -> StoredJob:
    """Return a small job, with some fields as given."""
    job = StoredJob(number, b"H:host:%d" % number, b"reverse", b"unique-%d" % number, b"hello", 1)
    return job._replace(**fields)  # type: ignore[arg-type]


async def check_close_before_open(make_store: MakeStore) -> None:
    """A store that was never opened can be closed, and closed again."""
    store = make_store()
    await store.close()
    await store.close()


async def check_close_twice(make_store: MakeStore) -> None:
    """An open store can be closed twice, also while the first close still runs."""
    store = make_store()
    await store.open()
    first, second = store.close(), store.close()
    await first
    await second
    await store.close()


async def check_check_leaves_it_usable(make_store: MakeStore) -> None:
    """A store that checks well before it is opened opens, also the second time."""
    for _ in range(2):
        store = make_store()
        store.check()
        await _use(store, [], [])


async def check_empty_store(make_store: MakeStore) -> None:
    """An empty store replays no jobs."""
    _expect(await _replayed(make_store), [], "a replay of an empty store")


async def check_empty_apply(make_store: MakeStore) -> None:
    """Saving and forgetting nothing works."""
    await _use(make_store(), [], [])


async def check_every_field_comes_back(make_store: MakeStore) -> None:
    """Every field comes back unchanged, at the limits of its values."""
    all_bytes = bytes(range(256))
    await _round_trip(
        make_store,
        [
            a_job(1, workload=all_bytes * 3),
            a_job(2, unique=b"", workload=b""),
            a_job(3, handle=b"H:" + b"h" * 62, unique=b"u" * 64),
            a_job(4, handle=all_bytes[192:], unique=all_bytes[1:65], function=all_bytes[1:]),
            a_job(5, function=b"f" * 8191, reducer=b"r" * 8191),
            a_job(6, function=b"", reducer=b""),
            a_job(7, workload=all_bytes * 4096),
            a_job(8, workload=b"\0"),
            a_job(9, priority=0, run_at=0),
            a_job(10, priority=2, run_at=2**40),
            a_job(11, run_at=2**63 - 1),
            a_job(2**32),
            a_job(2**53 + 1),
            a_job(2**63 - 1),
        ],
    )


async def check_equal_jobs_stay_apart(make_store: MakeStore) -> None:
    """Jobs that differ in their id only, not even in unique and handle, are different jobs."""
    await _round_trip(make_store, [a_job(1)._replace(id=number) for number in range(1, 5)])


async def check_order(make_store: MakeStore) -> None:
    """Jobs come back in the order of their ids, in whatever order they were saved."""
    jobs = [a_job(number) for number in (9, 10, 99, 100, 2**31, 2**32, 2**62)]
    shuffled = random.Random(1).sample(jobs, len(jobs))
    await _use(make_store(), shuffled[:3], [])
    await _use(make_store(), shuffled[3:], [])
    _expect(await _replayed(make_store), jobs, "a replay of jobs that were saved in another order")


async def check_apply_again(make_store: MakeStore) -> None:
    """Applying the same again changes nothing."""
    await _use(make_store(), [a_job(1), a_job(2)], [])
    for _ in range(2):
        await _use(make_store(), [a_job(3), a_job(4)], [1])
    _expect(await _replayed(make_store), [a_job(2), a_job(3), a_job(4)], "applying the same twice")


async def check_save_replaces(make_store: MakeStore) -> None:
    """A job that is saved again is replaced, with all of its fields."""
    new = StoredJob(1, b"H:new:1", b"other", b"", b"", 2, 5, b"reducer", b"0 12 * * 0")
    await _use(make_store(), [a_job(1), a_job(2)], [])
    await _use(make_store(), [new], [])
    _expect(await _replayed(make_store), [new, a_job(2)], "saving a job again")


async def check_forget(make_store: MakeStore) -> None:
    """A forgotten job is gone, and no other is."""
    await _use(make_store(), [a_job(number) for number in range(1, 6)], [])
    await _use(make_store(), [], [2, 4])
    _expect(await _replayed(make_store), [a_job(1), a_job(3), a_job(5)], "forgetting two of five jobs")


async def check_forget_unknown(make_store: MakeStore) -> None:
    """Forgetting an unknown id is a no-op, alone, among others, and twice."""
    await _use(make_store(), [a_job(1), a_job(2)], [])
    await _use(make_store(), [], [7])
    await _use(make_store(), [a_job(3)], [2**63 - 1, 1, 7, 1])
    _expect(await _replayed(make_store), [a_job(2), a_job(3)], "forgetting ids that are not there")


async def check_saved_and_forgotten(make_store: MakeStore) -> None:
    """A job that is saved and forgotten in one call is gone, whether or not it was there before."""
    await _use(make_store(), [a_job(1)], [])
    await _use(make_store(), [a_job(1, workload=b"new"), a_job(2), a_job(3)], [1, 2])
    _expect(await _replayed(make_store), [a_job(3)], "saving and forgetting the same ids at once")


async def check_all_or_nothing(make_store: MakeStore) -> None:
    """If one job cannot be saved, nothing of its batch is done, and the store goes on."""
    # No store should accept None for bytes. If one does, there is no failure to check.
    broken = a_job(3, workload=None)
    store = make_store()
    await store.open()
    try:
        await store.apply([a_job(1)], [])
        try:
            await store.apply([a_job(2), broken, a_job(4)], [1])
        except StoreError:
            pass
        else:
            return
        await store.apply([a_job(5)], [])
    finally:
        await store.close()
    _expect(await _replayed(make_store), [a_job(1), a_job(5)], "a batch with a job that cannot be saved")


async def check_reopen(make_store: MakeStore) -> None:
    """Everything that was applied is there however often the store is reopened."""
    jobs: list[StoredJob] = []
    for number in range(1, 5):
        jobs.append(a_job(number))
        await _use(make_store(), jobs[-1:], [])
        _expect(await _replayed(make_store), jobs, "opening the storage again")


async def check_one_store_for_all(make_store: MakeStore) -> None:
    """One store replays its jobs, then applies one batch after another, as the server does."""
    await _use(make_store(), [a_job(1), a_job(2)], [])
    store = make_store()
    await store.open()
    try:
        found: list[StoredJob] = []
        await store.replay(found.extend)
        _expect(found, [a_job(1), a_job(2)], "a replay before more is applied")
        await store.apply([a_job(3)], [1])
        await store.apply([a_job(4)], [3])
        await store.apply([], [4])
        await store.apply([a_job(5)], [])
    finally:
        await store.close()
    _expect(await _replayed(make_store), [a_job(2), a_job(5)], "several applies of one store")


async def check_many_jobs(make_store: MakeStore) -> None:
    """More jobs than fit one batch are saved, replayed in order, and forgotten."""
    jobs = [a_job(number * 3) for number in range(1, 6_002)]
    await _use(make_store(), jobs, [])
    _expect(await _replayed(make_store), jobs, "6,001 jobs")
    kept = jobs[::1000]
    ids = {job.id for job in jobs} - {job.id for job in kept}
    await _use(make_store(), [], sorted(ids))
    _expect(await _replayed(make_store), kept, "what is left of 6,001 jobs")


async def check_load(make_store: MakeStore) -> None:
    """Jobs are read in the order of the given ids, also while jobs are saved; missing ones are left out."""
    jobs = [a_job(number, workload=b"w" * number) for number in range(1, 3_000)]
    store = make_store()
    await store.open()
    try:
        _expect(await store.load([]), [], "loading no job")
        await store.apply(jobs, [])
        saving = store.apply([a_job(5_000)], [3])
        wanted = [jobs[number] for number in (2_000, 7, 8, 1)]
        _expect(await store.load([job.id for job in wanted]), wanted, "loading four jobs")
        await saving
        _expect(await store.load([4_000, 3, 2**63 - 1]), [], "loading jobs that are not there")
        _expect(await store.load([1, 3, 5_000]), [jobs[0], a_job(5_000)], "loading what was just saved")
        _expect(await store.load([job.id for job in jobs]), jobs[:2] + jobs[3:], "loading all jobs")
    finally:
        await store.close()


async def check_many_large_jobs(make_store: MakeStore) -> None:
    """Many jobs with large workloads in one batch come back."""
    await _round_trip(make_store, [a_job(number, workload=b"%d" % number * 2**19) for number in range(1, 41)])


LIFECYCLE_CHECKS: tuple[Check, ...] = (
    check_close_before_open,
    check_close_twice,
    check_check_leaves_it_usable,
    check_empty_store,
    check_empty_apply,
)
DURABILITY_CHECKS: tuple[Check, ...] = (
    check_every_field_comes_back,
    check_equal_jobs_stay_apart,
    check_order,
    check_apply_again,
    check_save_replaces,
    check_forget,
    check_forget_unknown,
    check_saved_and_forgotten,
    check_all_or_nothing,
    check_reopen,
    check_one_store_for_all,
    check_many_jobs,
    check_load,
    check_many_large_jobs,
)
CHECKS: tuple[Check, ...] = LIFECYCLE_CHECKS + DURABILITY_CHECKS


def name_of(check: Check) -> str:
    """Return the name of a check, for reports."""
    return str(getattr(check, "__name__", check))


async def run_all(make_storage: Callable[[], MakeStore], checks: Sequence[Check] = CHECKS) -> None:
    """Run checks one after the other, each on storage of its own.

    Args:
        make_storage: called before each check; makes or empties a storage, and returns the
            ``make_store`` for it.
        checks: the checks to run.
    """
    for check in checks:
        await check(make_storage())


async def _use(store: IJobStore, saves: Sequence[StoredJob], forgets: Sequence[int]) -> None:
    await store.open()
    try:
        await store.apply(saves, forgets)
    finally:
        await store.close()


async def _replayed(make_store: MakeStore) -> list[StoredJob]:
    store = make_store()
    jobs: list[StoredJob] = []
    await store.open()
    try:
        count = await store.replay(jobs.extend)
    finally:
        await store.close()
    _expect(count, len(jobs), "the number of jobs that a replay fires with")
    return jobs


async def _round_trip(make_store: MakeStore, jobs: list[StoredJob]) -> None:
    await _use(make_store(), jobs, [])
    _expect(await _replayed(make_store), jobs, "a replay of what was saved")


def _expect(found: object, wanted: object, what: str) -> None:
    if isinstance(found, list) and isinstance(wanted, list):
        for position, (one, other) in enumerate(zip(found, wanted, strict=False)):
            if one != other or list(map(type, one)) != list(map(type, other)):
                raise AssertionError(f"{what}: job {position} is {one!r:.300}, and should be {other!r:.300}")
        found, wanted = f"{len(found)} jobs", f"{len(wanted)} jobs"
    if found != wanted:
        raise AssertionError(f"{what}: found {found!r}, and should be {wanted!r}")
