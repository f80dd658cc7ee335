"""The admin client on Twisted: every call returns a Deferred."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from gearman_twisted.client.admin.core import (
    AdminCore,
    ConnectionInfo,
    FunctionStatus,
    JobInfo,
    PriorityStatus,
    ScheduledJob,
)
from gearman_twisted.client.on_twisted import runtime_of
from gearman_twisted.runtime.on_twisted import EndpointPlace

if TYPE_CHECKING:
    from typing_extensions import Self


class AdminClient:
    """Gives commands of the text protocol to one job server.

    It connects when a command is given and there is no connection. Commands go out in the order of the
    calls, and any number may wait for their answers at once.

    Every method returns a Deferred, and all errors come through it. It fails with ``NoServers`` when the
    server cannot be reached, ``ConnectionLost`` when the connection is lost before the answer is there (the
    command may have been carried out), ``LocalProtocolError`` when the command cannot be sent, and
    ``RemoteProtocolError`` when the answer makes no sense. All but ``command`` fail with ``ServerError``
    when the server refuses. Cancelling it discards the answer.

    Args:
        server: as ``GearmanClient`` takes it.
        reactor: the reactor to connect with; the global one if None.

    Raises:
        ConfigError: the server's address makes no sense.
    """

    def __init__(
        self, server: str | IStreamClientEndpoint = "127.0.0.1:4730", *, reactor: Any = None
    ) -> None:
        self._runtime = runtime_of(reactor)
        self._core = AdminCore(self._runtime, EndpointPlace.of(self._runtime.reactor, server))

    @property
    def server_name(self) -> str:
        """The server's address, for logs and errors."""
        return self._core.name

    def command(self, line: str | bytes) -> Deferred[bytes]:
        """Send a command as it is.

        Args:
            line: the command, without a line end; text as UTF-8.

        Returns:
            A Deferred that fires with the whole reply as it was sent, line ends included. An ``ERR`` reply is
            a reply too.
        """
        return cast("Deferred[bytes]", self._core.command(line))

    def status(self) -> Deferred[list[FunctionStatus]]:
        """List all functions, in the server's order; may be empty."""
        return self._runtime.start(self._core.status())

    def priority_status(self) -> Deferred[list[PriorityStatus]]:
        """List all functions with their queued jobs by priority, in the server's order; may be empty."""
        return self._runtime.start(self._core.priority_status())

    def show_jobs(self) -> Deferred[list[JobInfo]]:
        """List all jobs, in the server's order; may be empty."""
        return self._runtime.start(self._core.show_jobs())

    def show_unique_jobs(self) -> Deferred[list[bytes]]:
        """List the uniques of all jobs, in the server's order; may be empty."""
        return self._runtime.start(self._core.show_unique_jobs())

    def show_scheduled(self) -> Deferred[list[ScheduledJob]]:
        """List all jobs that wait for their time, recurring ones last. gearmand does not know this."""
        return self._runtime.start(self._core.show_scheduled())

    def workers(self) -> Deferred[list[ConnectionInfo]]:
        """List all connections, in the server's order; at least this one."""
        return self._runtime.start(self._core.workers())

    def ready(self) -> Deferred[bool]:
        """Ask whether the server has read its stored jobs, and serves. gearmand does not know this."""
        return self._runtime.start(self._core.ready())

    def version(self) -> Deferred[str]:
        """Ask for the server's version."""
        return self._runtime.start(self._core.value(b"version"))

    def verbose(self) -> Deferred[str]:
        """Ask for the server's log level, such as ``ERROR``."""
        return self._runtime.start(self._core.value(b"verbose"))

    def getpid(self) -> Deferred[int]:
        """Ask for the server's process id."""
        return self._runtime.start(self._core.number(b"getpid"))

    def cancel(self, handle: bytes) -> Deferred[None]:
        """Take a waiting job out of its queue; fails with code ``UNKNOWN_JOB`` if there is none."""
        return self._runtime.start(self._core.change(b"cancel job", handle))

    def cancel_unique(self, function: str | bytes, unique: str | bytes) -> Deferred[None]:
        """Take the job with a unique away, and the recurring one. gearmand does not know this.

        Fails with code ``UNKNOWN_JOB`` if there is none.
        """
        return self._runtime.start(self._core.change(b"cancel unique", function, unique))

    def create_function(self, function: str | bytes) -> Deferred[None]:
        """Make the server know a function before there is a worker or a job for it."""
        return self._runtime.start(self._core.change(b"create function", function))

    def drop_function(self, function: str | bytes) -> Deferred[None]:
        """Make the server forget a function, unless workers or jobs are there for it."""
        return self._runtime.start(self._core.change(b"drop function", function))

    def max_queue(self, function: str | bytes, *limits: int) -> Deferred[None]:
        """Limit how many jobs of a function may be queued.

        Args:
            function: the function's name.
            limits: one for all priorities, or those for high, normal and low; 0, or nothing, for no limit.
        """
        return self._runtime.start(self._core.max_queue(function, *limits))

    def shutdown(self, *, graceful: bool = False) -> Deferred[None]:
        """End a server that allows it; gearmand does not.

        Args:
            graceful: whether it serves its connections until no job is left. It takes no new ones then.
        """
        return self._runtime.start(self._core.change(b"shutdown graceful" if graceful else b"shutdown"))

    def close(self) -> Deferred[None]:
        """Disconnect; what waits for an answer fails. Fires when the connection is closed, never fails.

        A command that is given later connects again.
        """
        return self._runtime.start(self._core.close())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()
