"""What operators can do, with any protocol."""

from __future__ import annotations

import attrs

from gearman_twisted.engine.backlog import Backlog
from gearman_twisted.engine.endings import Endings
from gearman_twisted.engine.outbox import Shutdown, Turn
from gearman_twisted.engine.queues import Queues
from gearman_twisted.engine.records import NO_LIMITS, FunctionQueue, Limits
from gearman_twisted.engine.register import Register
from gearman_twisted.engine.usage import Usage


@attrs.define(eq=False)
class Operations:
    """Changes that operators make.

    Args:
        turn: the call being handled.
        usage: what the server keeps.
        register, queues, backlog, endings: the parts that are changed.
    """

    _turn: Turn
    _usage: Usage
    _register: Register
    _queues: Queues
    _backlog: Backlog
    _endings: Endings

    def cancel(self, handle: bytes) -> bool:
        """Cancel a job: its clients get WORK_FAIL, what its worker still sends is dropped.

        Returns:
            Whether there was such a job.
        """
        job = self._backlog.find(handle)
        if job is None:
            return False
        self._endings.cancel(job)
        return True

    def cancel_unique(self, function: bytes, unique: bytes) -> bool:
        """Cancel the job that has a unique, and the recurring one; return whether there was either."""
        queue = self._queues.functions.get(function)
        if queue is None:
            return False
        is_known = False
        # A recurring job may stand before one that it was about to replace.
        recurring_of, find_unique = self._register.recurring_of, self._backlog.find_unique
        while (job := recurring_of(queue, unique) or find_unique(queue, unique)) is not None:
            self._endings.cancel(job)
            is_known = True
        return is_known

    def create_function(self, name: bytes) -> bool:
        """Make a function known until it is dropped; return whether there is memory for it."""
        if self._usage.is_full and name not in self._queues.functions:
            return False
        self._queues.function(name).is_created = True
        return True

    def drop_functions(self, name: bytes) -> bool | None:
        """Forget the functions of a name, in whatever case, that have neither jobs nor workers.

        Returns:
            None if there is no such function, otherwise whether all of them could be dropped.
        """
        dropped = [self._drop(queue) for queue in self._queues.named(name)]
        return all(dropped) if dropped else None

    def _drop(self, queue: FunctionQueue) -> bool:
        if queue.total or queue.workers or queue.recurring:
            return False
        self._queues.remove(queue)
        return True

    def limit(self, name: bytes, limits: Limits) -> bool:
        """Limit a function's jobs by priority, also before it is known; None for no limit.

        Returns:
            Whether there is memory for it.
        """
        if self._usage.is_full and limits != NO_LIMITS and name not in self._queues.functions:
            return False
        self._queues.limit(name, limits)
        return True

    def shut_down(self, how: Shutdown) -> None:
        """Shut the server down."""
        self._turn.out.shutdown = how
