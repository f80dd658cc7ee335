"""The inside of an engine, for tests to look at."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from gearman_twisted.engine.backlog import Backlog
from gearman_twisted.engine.queues import Agenda, Queues
from gearman_twisted.engine.records import Connection, FunctionQueue, Job
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.saves import Saves
from gearman_twisted.engine.usage import Usage
from gearman_twisted.engine.wakeups import Wakeups


@attrs.frozen
class Inspection:
    """The inside of an engine, to look at and not to change.

    All of it stays up to date: an inspection may be kept as long as its engine.
    """

    _connections: dict[int, Connection]
    _register: Register
    _queues: Queues
    _agenda: Agenda
    _wakeups: Wakeups
    _backlog: Backlog
    _saves: Saves
    _usage: Usage

    @property
    def jobs(self) -> Mapping[bytes, Job]:
        """The jobs in memory by handle, recurring ones left out."""
        return self._register.jobs

    @property
    def recurring(self) -> Mapping[bytes, Job]:
        """The recurring jobs by handle."""
        return self._register.recurring

    @property
    def functions(self) -> Mapping[bytes, FunctionQueue]:
        """The functions by name."""
        return self._queues.functions

    @property
    def last_id(self) -> int:
        """The highest id that a job was given."""
        return self._register.last_id

    @property
    def workload_bytes(self) -> int:
        """How long the workloads of all jobs in memory are together."""
        return self._register.workload_bytes

    @property
    def uncounted_bytes(self) -> int:
        """What the running total has beside functions; 0 when the engine is idle and alone."""
        return self._usage.bytes - self._queues.count_bytes()

    def find(self, handle: bytes) -> Job | None:
        """Return the job of a handle, recurring ones left out; a placeholder if it is in the store only."""
        job = self._backlog.find(handle)
        return job if job is not None and job.schedule is None else None

    def leftovers(self) -> dict[str, object]:
        """Return all that is remembered of jobs and peers; empty when the engine is idle and alone."""
        found: dict[str, object] = {
            "jobs": [job.handle for job in self._backlog.jobs()],
            "scheduled": list(self._register.scheduled),
            "recurring": list(self._register.recurring),
            "uniques": len(self._register.uniques),
            "recurring uniques": len(self._register.recurring_uniques),
            "connections": list(self._connections),
            "saving": len(self._saves),
            "unconfirmed": self._saves.unconfirmed,
            "scheduled or timed": self._agenda.live,
            "asleep": self._wakeups.asleep,
            "backlog": self._backlog.leftovers(),
            "usage": self.uncounted_bytes,
            "usage of peers": self._usage.of_peers,
            "workload bytes": self._register.workload_bytes,
            "ready": self._queues.ready(),
        }
        for queue in self._queues.functions.values():
            found |= {
                f"{queue.name!r} total": queue.total,
                f"{queue.name!r} running": queue.running,
                f"{queue.name!r} queued": sum(lane.live for lane in queue.lanes),
                f"{queue.name!r} recurring": queue.recurring,
                f"{queue.name!r} by workload": queue.by_workload,
                f"{queue.name!r} workers": len(queue.workers),
                f"{queue.name!r} sleepers": len(queue.sleepers),
            }
        return {what: value for what, value in found.items() if value}
