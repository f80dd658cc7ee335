"""The jobs of all functions by unique: to coalesce within a function, and to find over all of them.

One dictionary for all functions: GET_STATUS_UNIQUE names no function, and must not cost a step for each.
"""

from __future__ import annotations

from typing import cast

from gearman_twisted.engine.records import FunctionQueue, Job

Entry = Job | int
"""A job, or the id of an offloaded one."""

# Nearly always one function has the unique: its job, or function and id. Otherwise all of them, oldest first.
_Found = Job | tuple[FunctionQueue, int] | dict[FunctionQueue, Entry]


class Uniques:
    """The jobs that have a unique, at most one of a function for each."""

    def __init__(self) -> None:
        self._found: dict[bytes, _Found] = {}

    def __len__(self) -> int:
        return len(self._found)

    def get(self, function: FunctionQueue, unique: bytes) -> Entry | None:
        """Return a function's job of a unique, or the id of it if it is offloaded."""
        found = self._found.get(unique)
        if found is None:
            return None
        if isinstance(found, Job):
            return found if found.function is function else None
        if isinstance(found, tuple):
            return found[1] if found[0] is function else None
        return found.get(function)

    def newest(self, unique: bytes) -> tuple[FunctionQueue, Entry] | None:
        """Return the job of a unique that was added last, over all functions, with its function."""
        found = self._found.get(unique)
        if isinstance(found, Job):
            return found.function, found
        if isinstance(found, dict):
            return next(reversed(found.items()))
        return found

    def add(self, job: Job) -> None:
        """Add a job, unless its function has one of the unique already."""
        found = self._found.setdefault(job.unique, job)
        if found is not job and self.get(job.function, job.unique) is None:
            self.put(job.function, job.unique, job)

    def put(self, function: FunctionQueue, unique: bytes, entry: Entry) -> None:
        """Add a job or its id, in the place of what its function has of the unique."""
        found = self._found.get(unique)
        if isinstance(found, dict):
            found[function] = entry
        elif found is None or self.get(function, unique) is not None:
            self._found[unique] = entry if isinstance(entry, Job) else (function, entry)
        else:
            first = (found.function, found) if isinstance(found, Job) else found
            self._found[unique] = dict(cast("list[tuple[FunctionQueue, Entry]]", [first, (function, entry)]))

    def remove(self, job: Job) -> bool:
        """Remove a job; return whether it was here, and no other one of its function and unique."""
        found = self._found.get(job.unique)
        if found is job:
            del self._found[job.unique]
            return True
        if not isinstance(found, dict) or found.get(job.function) is not job:
            return False
        del found[job.function]
        if len(found) == 1:
            [(function, entry)] = found.items()
            self._found[job.unique] = entry if isinstance(entry, Job) else (function, entry)
        return True
