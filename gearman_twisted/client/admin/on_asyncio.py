"""The admin client on asyncio: every call is a coroutine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gearman_twisted.client.admin.core import (
    AdminCore,
    ConnectionInfo,
    FunctionStatus,
    JobInfo,
    PriorityStatus,
    ScheduledJob,
)
from gearman_twisted.runtime.on_asyncio import AddressPlace, AsyncioRuntime

if TYPE_CHECKING:
    from ssl import SSLContext

    from typing_extensions import Self


class AdminClient:
    """Gives commands of the text protocol to one job server.

    The details of results and errors are in the documentation of ``gearman_twisted.client.AdminClient``.

    Args:
        server: as ``GearmanClient`` takes it.
        ssl: how TLS is spoken, if it is.

    Raises:
        ConfigError: the server's address makes no sense.
    """

    def __init__(self, server: str = "127.0.0.1:4730", *, ssl: SSLContext | None = None) -> None:
        place = AddressPlace.of(server, ssl)
        self._runtime = AsyncioRuntime(f"the admin client of {place.name}", is_strict=True)
        self._core = AdminCore(self._runtime, place)

    @property
    def server_name(self) -> str:
        """The server's address, for logs and errors."""
        return self._core.name

    async def command(self, line: str | bytes) -> bytes:
        """Send a command as it is; return the whole reply as it was sent, ``ERR`` replies too."""
        return await self._core.command(line)

    async def status(self) -> list[FunctionStatus]:
        """Return all functions, in the server's order; may be empty."""
        return await self._core.status()

    async def priority_status(self) -> list[PriorityStatus]:
        """Return all functions with their queued jobs by priority, in the server's order; may be empty."""
        return await self._core.priority_status()

    async def show_jobs(self) -> list[JobInfo]:
        """Return all jobs, in the server's order; may be empty."""
        return await self._core.show_jobs()

    async def show_unique_jobs(self) -> list[bytes]:
        """Return the uniques of all jobs, in the server's order; may be empty."""
        return await self._core.show_unique_jobs()

    async def show_scheduled(self) -> list[ScheduledJob]:
        """Return all jobs that wait for their time, recurring ones last. gearmand does not know this."""
        return await self._core.show_scheduled()

    async def workers(self) -> list[ConnectionInfo]:
        """Return all connections, in the server's order; at least this one."""
        return await self._core.workers()

    async def ready(self) -> bool:
        """Return whether the server has read its stored jobs, and serves. gearmand does not know this."""
        return await self._core.ready()

    async def version(self) -> str:
        """Return the server's version."""
        return await self._core.value(b"version")

    async def verbose(self) -> str:
        """Return the server's log level, such as ``ERROR``."""
        return await self._core.value(b"verbose")

    async def getpid(self) -> int:
        """Return the server's process id."""
        return await self._core.number(b"getpid")

    async def cancel(self, handle: bytes) -> None:
        """Take a waiting job out of its queue; fails with code ``UNKNOWN_JOB`` if there is none."""
        await self._core.change(b"cancel job", handle)

    async def cancel_unique(self, function: str | bytes, unique: str | bytes) -> None:
        """Take the job with a unique away, and the recurring one. gearmand does not know this.

        Fails with code ``UNKNOWN_JOB`` if there is none.
        """
        await self._core.change(b"cancel unique", function, unique)

    async def create_function(self, function: str | bytes) -> None:
        """Make the server know a function before there is a worker or a job for it."""
        await self._core.change(b"create function", function)

    async def drop_function(self, function: str | bytes) -> None:
        """Make the server forget a function, unless workers or jobs are there for it."""
        await self._core.change(b"drop function", function)

    async def max_queue(self, function: str | bytes, *limits: int) -> None:
        """Limit how many jobs of a function may be queued.

        Args:
            function: the function's name.
            limits: one for all priorities, or those for high, normal and low; 0, or nothing, for no limit.
        """
        await self._core.max_queue(function, *limits)

    async def shutdown(self, *, graceful: bool = False) -> None:
        """End a server that allows it; gearmand does not.

        Args:
            graceful: whether it serves its connections until no job is left. It takes no new ones then.
        """
        await self._core.change(b"shutdown graceful" if graceful else b"shutdown")

    async def close(self) -> None:
        """Disconnect; what waits for an answer fails. A command that is given later connects again."""
        await self._core.close()
        self._runtime.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()
