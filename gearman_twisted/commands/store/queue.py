"""A queue of the original gearmand, and what stands in one: to be read by ``gearman-store import``."""

from __future__ import annotations

import abc
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any

import attrs

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.constants import MAX_ARGUMENT_BYTES, MAX_UNIQUE_BYTES, Priority

# What the handle of every imported job starts with: that it was imported, and is not imported twice.
HANDLE_PREFIX = b"H:imported:"
SSL_OPTIONS = ("sslmode", "sslrootcert", "sslcert", "sslkey")


@attrs.frozen
class Found:
    """A job in a queue of gearmand.

    Attributes:
        function: see ``StoredJob``; so are unique, workload, priority and run_at.
    """

    function: bytes
    unique: bytes
    workload: bytes
    priority: int
    run_at: int

    def handle(self, place: str) -> bytes:
        """Return the handle that the job gets, the same whenever it is imported.

        The queue does not keep the handle that the job had.

        Args:
            place: where the queue is. Jobs with a unique are the same job wherever they were found, as for
                a server; those without are not.
        """
        digest = blake2b(digest_size=16)
        numbers = b"%d %d" % (self.priority, self.run_at)
        where = b"" if self.unique else place.encode("utf-8", "surrogateescape")
        for part in (self.function, self.unique, self.workload, numbers, where):
            digest.update(b"%d:" % len(part))
            digest.update(part)
        return HANDLE_PREFIX + digest.hexdigest().encode()

    def job(self, id_: int, handle: bytes) -> StoredJob:
        """Return it as a job of ours."""
        return StoredJob(id_, handle, self.function, self.unique, self.workload, self.priority, self.run_at)

    def too_large(self, max_bytes: int) -> Unusable:
        """Return why it cannot be imported into a store that takes workloads of at most so many bytes."""
        where = f"the job of function {self.function!r:.100}, unique {self.unique!r:.100}"
        return Unusable(where, f"its workload has {len(self.workload):,} bytes, and TO takes {max_bytes:,}")


@attrs.frozen
class Unusable:
    """Something in a queue of gearmand that cannot be taken for a job.

    Attributes:
        where: how to find it there.
        reason: what is wrong with it.
    """

    where: str
    reason: str


class Source(abc.ABC):
    """A queue of gearmand.

    Attributes:
        description: where it is, in a line without secrets.
    """

    description: str

    @abc.abstractmethod
    def open(self) -> None:
        """Connect.

        Raises:
            StoreConfigError: there is no such queue, or a gearmand still has it.
            StoreUnavailable: it cannot be read now.
        """

    @abc.abstractmethod
    def warning(self) -> str | None:
        """Return what makes it likely that a gearmand still works on the queue; None if nothing does."""

    @abc.abstractmethod
    def count(self) -> int:
        """Return how many jobs there are, to be shown beside the progress."""

    @abc.abstractmethod
    def read(self) -> Iterator[Found | Unusable]:
        """Yield all that there is, in the order in which gearmand would read it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Disconnect. Idempotent, also before ``open``."""


def found_or_not(
    where: str, function: object, unique: object, data: object, *numbers: object
) -> Found | Unusable:
    """Make a job of what a queue holds, if it can be one.

    Args:
        where: how to find it there.
        function: its name, None if there is none.
        unique: its unique, None for none.
        data: its workload; gearmand stores an empty one as None.
        numbers: priority, None for normal; and time, None for at once.

    Returns:
        A ``Found`` or an ``Unusable``.
    """
    priority, run_at = (None if number is None else _number(number) for number in numbers)
    name, key, workload = _bytes(function), _bytes(unique), _bytes(data)
    priority = Priority.NORMAL if numbers[0] is None else priority
    run_at = 0 if numbers[1] is None else run_at
    if name is None or key is None or workload is None:
        return Unusable(where, "function, unique and data are bytes, and here one of them is not")
    reason = None
    if not name:
        reason = "it names no function"
    elif len(name) > MAX_ARGUMENT_BYTES or b"\0" in name:
        reason = f"the name of a function has at most {MAX_ARGUMENT_BYTES} bytes, and no NUL"
    elif len(key) > MAX_UNIQUE_BYTES or b"\0" in key:
        reason = f"a unique has at most {MAX_UNIQUE_BYTES} bytes, and no NUL"
    elif priority is None or not Priority.HIGH <= priority <= Priority.LOW:
        reason = f"its priority is {numbers[0]!r:.40}, not 0, 1 or 2"
    elif run_at is None or run_at >= 1 << 63:
        reason = f"its time is {numbers[1]!r:.40}, not seconds since 1970"
    if reason is not None:
        return Unusable(where, reason)
    return Found(name, key, workload, int(priority or 0), max(run_at or 0, 0))


def found_in_row(names: Sequence[str], row: Sequence[Any], table: str) -> Found | Unusable:
    """Make a job of a row of gearmand's table, if it can be one.

    Args:
        names: those of the columns; a table of an old gearmand has no ``when_to_run``.
        row: their values.
        table: the table's name.

    Returns:
        A ``Found`` or an ``Unusable``.
    """
    values = dict(zip(names, row, strict=True))
    function, unique = values.get("function_name"), values.get("unique_key")
    where = f"{table}: function_name {function!r:.100}, unique_key {unique!r:.100}"
    return found_or_not(
        where, function, unique, values.get("data"), values.get("priority"), values.get("when_to_run")
    )


def check_columns(names: Collection[str], description: str) -> None:
    """Refuse a table that is not gearmand's.

    Raises:
        StoreConfigError: it has not got its columns.
    """
    if not {"unique_key", "function_name", "priority", "data"} <= set(names):
        raise StoreConfigError(f"the table has not got the columns of gearmand: {description}")


def _bytes(value: object) -> bytes | None:
    """Return the bytes of a value, empty for NULL; None for other types, such as a number."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if value is None:
        return b""
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else None


def _number(value: object) -> int | None:
    with suppress(TypeError, ValueError):
        return int(value)  # type: ignore[call-overload, no-any-return]
    return None
