"""The client without an event loop: calls, when there is a connection, and which server is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from gearman_twisted.client.balancing import Balancer, Choice
from gearman_twisted.client.call import NO_CALLBACKS, Call, Callbacks, Receiver, ReceiverOf
from gearman_twisted.client.connection import ClientConnection, ConnectionSettings
from gearman_twisted.client.many import JobStream, Task
from gearman_twisted.client.requests import Request, echo_request, submit_request
from gearman_twisted.client.session import JobStatus
from gearman_twisted.errors import ConfigError, ConnectionLost, LocalProtocolError, NoServers
from gearman_twisted.runtime.interfaces import Peer, Place, Promise, Runtime
from gearman_twisted.runtime.link import Link, checked_policy
from gearman_twisted.runtime.waiters import Waiters

# An attempt to connect so late that the pauses between attempts do not grow any more.
_LATE_ATTEMPT = 30


def one_or_more(servers: Iterable[Any] | Any) -> list[Any]:
    """Return the servers that a user has given: several, or one without a list around it."""
    return [servers] if isinstance(servers, str) or not isinstance(servers, Iterable) else list(servers)


class Sender(Protocol):
    """Sends calls: over one connection, to one server, or to one of several."""

    def begin(self, call: Call) -> None:
        """Send a call, now or when it can be sent; or fail it."""


class Calls:
    """What can be asked of job servers.

    Args:
        runtime: the event loop.
        sender: sends the calls.
    """

    def __init__(self, runtime: Runtime, sender: Sender) -> None:
        self._runtime = runtime
        self._sender = sender

    def ask(
        self,
        make_request: Callable[[], Request],
        callbacks: Callbacks = NO_CALLBACKS,
        *,
        key: bytes = b"",
        retry: bool = False,
    ) -> Promise[Any]:
        """Send a request; the promise is settled with its result, or its error, that of a bad argument too.

        Args:
            make_request: makes the request; again if it is to be sent again.
            callbacks: what is called while a job runs.
            key: see ``Call``.
            retry: whether it may be sent again when it is not known whether the server had it.
        """
        try:
            if callbacks != NO_CALLBACKS:
                callbacks.check()
            request = make_request()
        except (TypeError, LocalProtocolError) as error:
            promise = self._runtime.promise()
            promise.fail(error)
            return promise
        call = Call(request, callbacks, key, make_request if retry else None)
        call.receiver = promise = self._runtime.promise(call.cancel)
        self._sender.begin(call)
        return promise

    def ping(self) -> Promise[Any]:
        """Ask for an echo; the promise is settled with the seconds that it took."""
        start = self._runtime.now()

        def ended(_echo: bytes, error: Exception | None) -> None:
            if error is None:
                promise.succeed(self._runtime.now() - start)
            else:
                promise.fail(error)

        call = Call(echo_request(b"ping"))
        call.receiver = ReceiverOf(ended)
        promise = self._runtime.promise(call.cancel)
        self._sender.begin(call)
        return promise

    def submit_many(
        self, tasks: Iterable[Task], *, background: bool, outstanding: int, retry: bool
    ) -> JobStream:
        """Submit jobs, a bounded number at a time."""

        def start(task: Task, receiver: Receiver) -> Call:
            make_request = partial(
                submit_request,
                task.function,
                task.workload,
                task.unique,
                task.priority,
                background=background,
            )
            call = Call(make_request(), key=task.unique, renew=make_request if retry else None)
            call.receiver = receiver
            self._sender.begin(call)
            return call

        return JobStream(self._runtime, start, tasks, outstanding)

    def seconds(self, when: float | datetime | timedelta) -> float:
        """Return a time in seconds since 1970.

        Raises:
            TypeError: it is no time.
            LocalProtocolError: it cannot be one.
        """
        if isinstance(when, timedelta):
            return self._runtime.wall_time() + when.total_seconds()
        if isinstance(when, datetime):
            if when.tzinfo is None:
                raise LocalProtocolError(f"when takes a datetime with a time zone, not {when!r}")
            return when.timestamp()
        if not isinstance(when, int | float):
            raise TypeError(f"when takes seconds since 1970, a datetime or a timedelta, not {when!r}")
        try:
            return float(when)
        except OverflowError as error:
            raise LocalProtocolError(f"a job cannot be run at {when!r:.200} seconds since 1970") from error


class ClientCore:
    """The client of one server: keeps a connection up, and has what waits for it.

    It connects when it is first used, and again until it is closed; it can be opened again after that.

    Args:
        runtime: the event loop.
        place: where the server is.
        settings: of its connections.
        retry_policy: seconds to wait before connection attempt number n.
        changed: called with this core when the server can be used, or cannot any more.

    Raises:
        ConfigError: the policy cannot be called.
    """

    def __init__(
        self,
        runtime: Runtime,
        place: Place,
        settings: ConnectionSettings,
        retry_policy: Callable[[int], float],
        changed: Callable[[ClientCore], object] = lambda _: None,
    ) -> None:
        self.name = place.name
        self._runtime = runtime
        self._settings = settings
        self._changed = changed
        self._log = runtime.log("client")
        self._retry_policy = checked_policy(retry_policy, self._log)
        self._link = Link(runtime, place, self)
        self._connection: ClientConnection | None = None
        self._unsent: dict[Request, Call] = {}
        self._is_closed = False
        self._is_unreachable = False
        self._is_silent = False
        self._logged_failure = ""

    @property
    def is_ready(self) -> bool:
        """Whether it is connected, to a server that has not fallen silent."""
        return self._connection is not None and not self._is_silent

    @property
    def is_down(self) -> bool:
        """Whether the server cannot be reached, or was given up and has not answered anything since."""
        return self._is_unreachable or self._is_silent

    def open(self) -> None:
        """Take calls, also after ``close``. Idempotent."""
        self._is_closed = False

    def hurry(self) -> None:
        """Connect now, unless it is connected or closed."""
        if not self._is_closed and self._connection is None:
            self._link.hurry()

    def begin(self, call: Call) -> None:
        """Send a call, now or as soon as it is connected."""
        if self._is_closed:
            call.fail(NoServers(f"the client of {self.name} is closed"))
            return
        if call.recover is None and call.may_be_sent_again:
            call.recover = self._recover
        if self._connection is not None:
            self._connection.begin(call)
        else:
            call.wait_in(self._unsent)
            # A call that comes now has to know now whether the server can be reached.
            self._link.hurry()

    async def close(self) -> None:
        """Disconnect; all that waits fails. Idempotent."""
        self._is_closed = True
        self._is_unreachable = self._is_silent = False
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.closing()
        self._fail_unsent(f"the client of {self.name} was closed")
        await self._link.stop()

    def _recover(self, call: Call, error: Exception) -> bool:
        if not isinstance(error, ConnectionLost):
            return False
        call.renew()
        self.begin(call)
        return True

    def _fail_unsent(self, text: str) -> None:
        # What errbacks call now belongs to the next attempt; those that they cancel are left out.
        for call in list(self._unsent.values()):
            if call.request in self._unsent:
                call.fail(NoServers(text))

    # What the link calls.

    def make_peer(self) -> Peer:
        """Return a connection that is about to be made."""
        return ClientConnection(self._runtime, self._settings, self.name, self._log, self)

    def attempt_failed(self, reason: str) -> None:
        """Fail all that waits for the connection."""
        self._is_unreachable = True
        if reason != self._logged_failure:
            self._logged_failure = reason
            delay = max(self._retry_policy(1), self._retry_policy(_LATE_ATTEMPT))
            self._log.warning(
                "cannot connect to {server}: {reason}; retrying at least every {delay} s",
                server=self.name,
                reason=reason,
                delay=f"{delay:.2g}",
            )
        self._fail_unsent(f"cannot connect to {self.name}: {reason}")
        self._changed(self)

    def retry_delay(self, attempt: int) -> float:
        """Return the seconds to wait before the next attempt: none if a call waits."""
        return 0.0 if self._unsent else self._retry_policy(attempt)

    # What the connection calls.

    def connection_ready(self, connection: ClientConnection) -> None:
        """Send what waited for it."""
        self._connection = connection
        self._is_unreachable = False
        self._logged_failure = ""
        if self._is_silent:
            # It may still be frozen: the system takes connections for it.
            connection.ping()
        unsent, self._unsent = self._unsent, {}
        for call in list(unsent.values()):
            call.leave()
            connection.begin(call)
        self._changed(self)

    def connection_answers(self, connection: ClientConnection) -> None:
        """Trust a server again that had fallen silent."""
        if self._is_silent and connection is self._connection:
            self._is_silent = False
            self._changed(self)

    def connection_gone(self, connection: ClientConnection) -> None:
        """Do not use it any more."""
        if self._connection is connection:
            self._connection = None
            self._is_unreachable = True
            self._is_silent = self._is_silent or connection.was_silent
            self._changed(self)


class PoolCore:
    """The client of several servers: which of them gets a call, and what happens when it goes away.

    Args:
        runtime: the event loop.
        places: where the servers are.
        settings: of all connections.
        retry_policy: see ``ClientCore``.
        choice: which server gets a call.
        patience: seconds that a call waits for any server.

    Raises:
        ConfigError: there is no server, one is given twice, or a setting makes no sense.
    """

    def __init__(
        self,
        runtime: Runtime,
        places: Iterable[Place],
        settings: ConnectionSettings,
        retry_policy: Callable[[int], float],
        *,
        choice: Choice | str,
        patience: float,
    ) -> None:
        if not isinstance(patience, int | float) or not patience >= 0:
            raise ConfigError(f"patience takes seconds, 0 or more, not {patience!r}")
        self._runtime = runtime
        self._balancer = Balancer(choice)
        self._patience = patience
        self._is_closed = False
        self._has_begun = False
        # Calls that wait for a server, and questions to all of them.
        self._waiting: dict[Request, Call] = {}
        self._woken = Waiters(runtime)
        self._cores: list[ClientCore] = []
        for place in places:
            if any(place.name == core.name for core in self._cores):
                raise ConfigError(f"the server {place.name} is given twice")
            self._cores.append(ClientCore(runtime, place, settings, retry_policy, self._server_changed))
        if not self._cores:
            raise ConfigError("a pool needs at least one server")

    @property
    def connected(self) -> list[str]:
        """The names of the servers that can be used."""
        return [core.name for core in self._cores if core.is_ready]

    def open(self) -> None:
        """Take calls, also after ``close``. Idempotent."""
        self._is_closed = False
        for core in self._cores:
            core.open()

    def hurry(self) -> None:
        """Connect to all servers now."""
        self._has_begun = True
        for core in self._cores:
            core.hurry()

    async def close(self) -> None:
        """Disconnect from all servers; all that waits fails. Idempotent."""
        self._is_closed = True
        self._has_begun = False
        for call in list(self._waiting.values()):
            if call.request in self._waiting:
                call.fail(self._no_servers())
        self._woken.settle()
        for closing in [self._runtime.start(core.close()) for core in self._cores]:
            await closing

    def begin(self, call: Call) -> None:
        """Send a call to a server, now or when there is one."""
        if self._is_closed:
            call.fail(self._no_servers())
            return
        if not self._has_begun:
            self.hurry()
        call.recover = self._recover
        self._send(call)

    def _recover(self, call: Call, error: Exception) -> bool:
        if not isinstance(error, ConnectionLost) or not call.may_be_sent_again:
            return False
        call.renew()
        self.begin(call)
        return True

    def _send(self, call: Call) -> None:
        """Send a call to the first server that is there, or wait for it if it still connects."""
        home = next((core for core in self._in_order(call) if not core.is_down), None)
        if home is not None and home.is_ready:
            call.leave()
            home.begin(call)
            return
        call.home = home
        call.wait_in(self._waiting)
        if call.timer is None:
            call.timer = self._runtime.later(self._patience, partial(self._send_late, call))
        if home is None:
            self.hurry()

    def _send_late(self, call: Call) -> None:
        """Wait no longer for a server that does not answer."""
        call.leave()
        home = next((core for core in self._in_order(call) if core.is_ready), None)
        if home is None:
            call.fail(self._no_servers())
        else:
            home.begin(call)

    def _in_order(self, call: Call) -> list[ClientCore]:
        return self._balancer.in_order(
            self._cores, call.key, name=lambda core: core.name, is_ready=lambda core: core.is_ready
        )

    def _server_changed(self, changed: ClientCore) -> None:
        for call in list(self._waiting.values()):
            is_concerned = call.home is changed or (call.home is None and changed.is_ready)
            if is_concerned and call.request in self._waiting:
                self._send(call)
        if changed.is_ready:
            self._woken.settle()

    def _no_servers(self) -> NoServers:
        names = ", ".join(core.name for core in self._cores)
        why = "the pool was closed" if self._is_closed else f"none could be reached in {self._patience:g} s"
        return NoServers(f"no job server of {names}: {why}")

    # Questions to all servers.

    async def status(self, make_request: Callable[[], Request]) -> JobStatus:
        """Ask all servers for a job; return what the one that knows it says, if there is one."""
        answers: list[JobStatus] = await self._ask_all(make_request)
        return next((status for status in answers if status.is_known), answers[0])

    async def set_option(self, make_request: Callable[[], Request]) -> bytes:
        """Have all servers set an option; return its name."""
        answers: list[bytes] = await self._ask_all(make_request)
        return answers[0]

    async def _ask_all(self, make_request: Callable[[], Request]) -> list[Any]:
        """Ask all servers that are there; return the answers of those that answered, at least one."""
        make_request()  # raises what is wrong with the arguments, before anything is connected
        deadline = self._runtime.now() + self._patience
        while True:
            if not self._is_closed and not self._has_begun:
                self.hurry()
            asked = [core for core in self._cores if not core.is_down]
            answers = _Answers(self._runtime, asked, make_request, deadline)
            await answers.complete
            if answers.error is not None:
                raise answers.error
            if answers.values:
                return answers.values
            await self._until_server(deadline)

    async def _until_server(self, deadline: float) -> None:
        left = deadline - self._runtime.now()
        if self._is_closed or left <= 0:
            raise self._no_servers()
        woken = self._woken.add()
        timer = self._runtime.later(left, self._woken.settle)
        self.hurry()
        try:
            await woken
        finally:
            timer.cancel()


class _Answers:
    """What several servers answer to one question.

    Attributes:
        values: the answers.
        error: why a server that is there did not answer.
        complete: settled when nothing more will come.
    """

    def __init__(
        self,
        runtime: Runtime,
        cores: list[ClientCore],
        make_request: Callable[[], Request],
        deadline: float,
    ) -> None:
        self.values: list[Any] = []
        self.error: Exception | None = None
        self.complete: Promise[None] = runtime.promise(self._cancel)
        self._due = len(cores)
        self._calls: list[Call] = []
        for core in cores:
            call = Call(make_request())
            call.receiver = ReceiverOf(self._take)
            self._calls.append(call)
            core.begin(call)
            if call.is_waiting and call.request.packet:  # not sent yet
                late = NoServers(f"{core.name} is not there yet")
                call.timer = runtime.later(max(0.0, deadline - runtime.now()), partial(call.fail, late))
        if not cores:
            self.complete.succeed(None)

    def _take(self, value: Any, error: Exception | None) -> None:
        if error is None:
            self.values.append(value)
        elif not isinstance(error, NoServers | ConnectionLost):
            self.error = self.error or error
        self._due -= 1
        if not self._due:
            self.complete.succeed(None)

    def _cancel(self) -> None:
        for call in self._calls:
            call.cancel()
