"""What may be asked of job servers in asyncio: what a client of one and a pool of several have in common."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gearman_twisted.client import asking
from gearman_twisted.client.asyncio_stream import JobStream
from gearman_twisted.client.course import Callbacks
from gearman_twisted.client.many import Task
from gearman_twisted.client.requests import Request
from gearman_twisted.client.session import JobStatus
from gearman_twisted.wire.constants import Priority

if TYPE_CHECKING:
    from typing_extensions import Self


class ClientCalls(abc.ABC):
    """Whatever can submit jobs. The calls are those of ``gearman_twisted.GearmanClient``, as coroutines.

    The details of arguments, results and errors are in the documentation there.
    """

    @abc.abstractmethod
    async def _perform(
        self, make_request: Callable[[], Request], callbacks: Callbacks, key: bytes, *, retry: bool
    ) -> Any:
        """Sends a request to a server, and returns its outcome.

        Args:
            make_request: makes the request, anew for each time that it is sent.
            callbacks: who else is told.
            key: requests of one key go to one server, as long as it is there; empty for any.
            retry: whether it may be sent again when it is not known whether the server had it.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Disconnects; all that waits fails. Closed twice is closed, and calls are refused from then on."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def submit(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority = Priority.NORMAL,
        retry: bool = False,
        on_created: Callable[[bytes], object] | None = None,
        on_data: Callable[[bytes], object] | None = None,
        on_warning: Callable[[bytes], object] | None = None,
        on_status: Callable[[int, int], object] | None = None,
    ) -> bytes:
        """Runs a job and returns its result.

        The callbacks are called as the packets come. One that raises ends this call with its exception.

        Raises:
            JobFailed: the job failed.
            JobException: the job failed, and its worker says why.
            ServerError: the server refused it.
            ConnectionLost: the connection was lost before the end; the job may still run.
            NoServers: the server cannot be reached.
        """
        return await self._ask(
            lambda: asking.submit(function, workload, unique, priority),
            Callbacks(on_created, on_data, on_warning, on_status),
            key=unique,
            retry=retry,
        )

    async def submit_background(
        self,
        function: str | bytes,
        workload: bytes = b"",
        *,
        unique: bytes = b"",
        priority: Priority = Priority.NORMAL,
        retry: bool = False,
    ) -> bytes:
        """Hands a job to the server, which runs it whether or not this client stays; returns its handle."""
        return await self._ask(
            lambda: asking.submit(function, workload, unique, priority, background=True),
            key=unique,
            retry=retry,
        )

    async def submit_at(
        self,
        function: str | bytes,
        workload: bytes,
        when: float | datetime,
        *,
        unique: bytes = b"",
        retry: bool = False,
    ) -> bytes:
        """Hands a background job to the server, to be run at a time or later; returns its handle."""
        return await self._ask(
            lambda: asking.submit_at(function, workload, unique, when), key=unique, retry=retry
        )

    async def submit_recurring(
        self, function: str | bytes, workload: bytes, schedule: str, *, unique: bytes, retry: bool = False
    ) -> bytes:
        """Has the server make a background job each time that a schedule says; returns a handle."""
        return await self._ask(
            lambda: asking.submit_recurring(function, workload, unique, schedule), key=unique, retry=retry
        )

    async def submit_reduce(
        self,
        function: str | bytes,
        workload: bytes,
        reducer: str | bytes,
        *,
        unique: bytes = b"",
        retry: bool = False,
        on_warning: Callable[[bytes], object] | None = None,
        on_status: Callable[[int, int], object] | None = None,
    ) -> bytes:
        """Runs a job whose worker splits it, and another function for each part; returns what they made."""
        return await self._ask(
            lambda: asking.submit_reduce(function, workload, unique, reducer),
            Callbacks(None, None, on_warning, on_status),
            key=unique,
            retry=retry,
        )

    def submit_many(
        self,
        tasks: Iterable[Task],
        *,
        background: bool = False,
        outstanding: int = 100,
        retry: bool = False,
    ) -> JobStream:
        """Submits any number of jobs, a bounded number at a time; iterate over it with ``async for``."""
        submit = self.submit_background if background else self.submit
        return JobStream(
            lambda task: submit(
                task.function, task.workload, unique=task.unique, priority=task.priority, retry=retry
            ),
            tasks,
            outstanding,
        )

    async def status(self, handle: bytes) -> JobStatus:
        """Asks how a job is doing; a job that ended is not known any more."""
        return await self._ask_status(lambda: asking.status(handle))

    async def status_by_unique(self, unique: bytes) -> JobStatus:
        """Asks how the job with a unique is doing, and how many clients wait for it."""
        return await self._ask_status(lambda: asking.status_by_unique(unique))

    async def echo(self, data: bytes) -> bytes:
        """Has the server send data back."""
        return await self._ask(lambda: asking.echo(data))

    async def ping(self) -> float:
        """Asks whether the server is there; returns the seconds that its answer took."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        await self.echo(b"ping")
        return loop.time() - start

    async def set_option(self, option: str | bytes) -> bytes:
        """Sets an option of this connection, until it is lost; returns its name as the server took it."""
        return await self._ask(lambda: asking.set_option(option))

    async def _ask(
        self,
        make_request: Callable[[], Request],
        callbacks: Callbacks | None = None,
        *,
        key: bytes = b"",
        retry: bool = False,
    ) -> bytes:
        answer: bytes = await self._perform(make_request, callbacks or Callbacks(), key, retry=retry)
        return answer

    async def _ask_status(self, make_request: Callable[[], Request]) -> JobStatus:
        answer: JobStatus = await self._perform(make_request, Callbacks(), b"", retry=False)
        return answer
