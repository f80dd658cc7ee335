"""The worker, written once for both event loops; ``on_twisted.py`` and ``on_asyncio.py`` are its faces.

It wires the parts: the groups of functions, a link to each server for each group, the jobs that run, and the
slots that they share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from gearman_twisted.errors import ConfigError
from gearman_twisted.runtime.interfaces import Place, Promise, Runtime, Timer
from gearman_twisted.runtime.link import checked_policy
from gearman_twisted.runtime.waiters import Waiters
from gearman_twisted.wire.constants import LARGEST_PACKET_BYTES, ErrorCode
from gearman_twisted.wire.names import check_client_id, check_function
from gearman_twisted.wire.shown import shown
from gearman_twisted.worker.connection import (
    ServerFacts,
    WorkerConnection,
    WorkerConnectionOwner,
    WorkerLink,
    list_names,
)
from gearman_twisted.worker.executors import Executor
from gearman_twisted.worker.groups import FunctionGroup, FunctionGroups, limit_of_server
from gearman_twisted.worker.run import Registered, Runs, WorkerFunction
from gearman_twisted.worker.session import (
    Assigned,
    AssignedLate,
    Broken,
    GrabRefused,
    Outcome,
    Refused,
    WorkerSession,
)
from gearman_twisted.worker.slots import Slots

# Seconds that a worker that has given a job back leaves the function to others.
_PAUSE = 1.0
# A grab that is open at two looks, this many seconds apart, lends its slot: the server does not answer.
_LOOK_INTERVAL = 0.5
# Seconds that a worker that stops waits for the answer to a grab. Later ones are lost with the connection,
# and the server gives the job to another worker.
_GRAB_PATIENCE = 2.0


class WorkerCore(WorkerConnectionOwner):
    """A worker; the arguments are those of ``GearmanWorker``.

    Args:
        runtime: the event loop.
        places: the servers; none where connections are made by others, see ``new_link``.
        concurrency: see there.
        client_id: see there.
        drain_timeout: see there.
        retry_policy: see there.
        ping_interval: see there.
        max_packet_bytes: see there.
        max_waiting: see there.

    Raises:
        ConfigError: a number makes no sense, or the policy cannot be called.
        LocalProtocolError: the client id cannot be sent.
    """

    def __init__(
        self,
        runtime: Runtime,
        places: Sequence[Place],
        *,
        concurrency: int,
        client_id: str | bytes | None,
        drain_timeout: float,
        retry_policy: Callable[[int], float],
        ping_interval: float | None,
        max_packet_bytes: int,
        max_waiting: int,
    ) -> None:
        _check_count("concurrency", concurrency, 1)
        _check_number("drain_timeout", drain_timeout, "seconds, 0 or more", 0)
        if ping_interval is not None:
            _check_number("ping_interval", ping_interval, "0.1 to 86400 seconds or None", 0.1, 86_400)
        limits = 1024, LARGEST_PACKET_BYTES
        _check_number("max_packet_bytes", max_packet_bytes, f"{limits[0]} to {limits[1]}", *limits)
        _check_count("max_waiting", max_waiting, 0)
        self.runtime = runtime
        self.slots = Slots(concurrency)
        self.client_id = None if client_id is None else check_client_id(_encoded(client_id, "client_id"))
        self.ping_interval = ping_interval
        self._log = runtime.log("worker")
        self.retry_policy = checked_policy(retry_policy, self._log)
        self._drain_timeout = drain_timeout
        self.max_packet_bytes = max_packet_bytes
        self._places = [(place, ServerFacts(place.name, max_packet_bytes)) for place in places]
        # Also of functions that were unregistered: jobs of them may be on their way.
        self._functions: dict[bytes, Registered] = {}
        self._executors: set[Executor] = set()
        self._pauses: dict[bytes, Timer] = {}
        # Links that take no more jobs, and go when they have none.
        self._retired: list[WorkerLink] = []
        self._is_started = False
        self._is_gathering = False
        # While it stops: told when no job is left, or those that are left are not waited for.
        self._drains = Waiters(runtime)
        self._grab_patience: Timer | None = None
        self._is_stopping = False
        self._takes_no_more = False
        self._stops = Waiters(runtime)
        self._look: Timer | None = None
        self._open_grabs: dict[WorkerSession, int] = {}
        self._runs = Runs(runtime, self.slots, max_waiting, self.flush, self._pause)
        self._groups: FunctionGroups[WorkerLink] = FunctionGroups(
            self.slots, connect=self._connect, retire=self._retire
        )

    def register(
        self,
        name: str | bytes,
        function: WorkerFunction,
        *,
        timeout: float | None = None,
        server_timeout: float | None = None,
        concurrency: int | None = None,
    ) -> None:
        """Offer a function; see ``GearmanWorker.register``."""
        function_name = check_function(_encoded(name, "a function's name"))
        if not callable(function):
            raise ConfigError(
                f"register takes a name and a function, and {type(function).__name__} is not a function"
            )
        server_timeout = limit_of_server(timeout, server_timeout)
        if isinstance(function, Executor) and concurrency is None:
            concurrency = function.concurrency
        if concurrency is not None:
            _check_count("concurrency", concurrency, 1)
            if not self._places and concurrency < self.slots.count:
                raise ConfigError(
                    "a limit of its own takes a connection of its own, which a factory cannot make: "
                    "use GearmanWorker, or a second factory"
                )
        if isinstance(function, Executor):
            function.bind(self.runtime)
            self._executors.add(function)
        self._functions[function_name] = Registered(function, timeout, server_timeout)
        pause = self._pauses.pop(function_name, None)
        if pause is not None:
            pause.cancel()
        self._groups.offer(function_name, math.ceil(server_timeout * 1000), concurrency)
        self.flush()

    def unregister(self, name: str | bytes) -> None:
        """Withdraw a function; see ``GearmanWorker.unregister``."""
        self._groups.withdraw(_encoded(name, "a function's name"))
        self.flush()

    @property
    def is_running(self) -> bool:
        """Whether it was started, and has not stopped since."""
        return self._is_started

    def start(self) -> None:
        """Connect to all servers. A no-op while it runs.

        Raises:
            RuntimeError: it is about to stop.
        """
        if self._is_stopping:
            raise RuntimeError("the worker is stopping: wait for that before it is started again")
        if self._is_started:
            return
        self._is_started = True
        self._takes_no_more = False
        self._runs.start()
        self._log.info(
            "worker starts: functions {functions}; servers {servers}; concurrency {count}",
            functions=list_names([shown(name) for name in self._groups.names()]),
            servers=", ".join(place.name for place, _ in self._places),
            count=self.slots.count,
        )
        for link in self._links():
            link.start()

    def stop(self) -> Promise[None]:
        """Take no more jobs, wait for those that run, and disconnect.

        Jobs that wait for another try go back to their servers. Asked again, it waits no longer for jobs.

        Returns:
            A promise that is settled when all connections are closed and all processes have ended.
        """
        stopped = self.stopped()
        if self._is_stopping:
            self._drained()
        elif self._is_started:
            self._is_stopping = True
            self.runtime.background(self._stop())
        else:
            self._stops.settle()
        return stopped

    def stopped(self) -> Promise[None]:
        """Return a promise that is settled when the worker has stopped."""
        return self._stops.add()

    async def drain(self) -> None:
        """Take no more jobs, and wait for those that run, as long as they take; connections stay."""
        drained = self._begin_drain()
        self.flush()
        await drained
        for stopping in [self.runtime.start(executor.stop()) for executor in self._executors]:
            await stopping

    def new_link(self, server: str) -> WorkerLink:
        """Return a link for a connection that somebody else makes.

        Args:
            server: its name, for the log.
        """
        self._is_started = True
        group = next(iter(self._groups))
        link = WorkerLink(self, ServerFacts(server, self.max_packet_bytes), group, None)
        if self._takes_no_more:
            link.drain()
        return link

    # Called by the connections, and by the jobs that run.

    def take(self, connection: WorkerConnection, outcomes: list[Outcome]) -> None:
        self._is_gathering = True
        try:
            for outcome in outcomes:
                if isinstance(outcome, Assigned):
                    function = self._functions.get(outcome.function)
                    self._runs.run(outcome, function, connection.session, connection.server)
                else:
                    self._take_other(connection, outcome)
        finally:
            self._is_gathering = False
        self.flush()

    def connection_lost(self, session: WorkerSession) -> None:
        self._runs.detach(session)
        # Its slot may be of use to another session.
        self.flush()

    def flush(self) -> None:
        if self._is_gathering:
            # It is about to be done.
            return
        for group in self._groups:
            for number, link in enumerate(group.connections):
                session = link.session
                if session is not None and session.is_held_up and link.can_be_replaced:
                    # A new connection takes jobs while those of the old one come to their end.
                    self._retire(link)
                    link = group.connections[number] = self._new_link(link.server, group)  # noqa: PLW2901
                link.flush()
        if self._retired:
            self._stop_retired()
        if self._look is None and self.slots.is_wanted and any(self._open_sessions()):
            self._look = self.runtime.later(_LOOK_INTERVAL, self._look_for_silent_servers)
        if self._drains:
            self._check_drained()

    def _take_other(self, connection: WorkerConnection, outcome: Outcome) -> None:
        server = connection.server
        if isinstance(outcome, Broken):
            connection.break_off(str(outcome.reason))
        elif isinstance(outcome, AssignedLate):
            function = self._functions.get(outcome.job.function)
            self._runs.run_late(outcome.job, function, connection.session, server)
        elif isinstance(outcome, GrabRefused):
            server.has_uniques = False
            self._log.info(
                "{server} does not know GRAB_JOB_UNIQ ({text}): jobs from it have no unique",
                server=server.name,
                text=shown(outcome.text),
            )
        elif isinstance(outcome, Refused):
            if outcome.code == ErrorCode.ARGUMENT_TOO_LARGE:
                # The job comes again, as the server closes the connection, and would for ever.
                largest = max(connection.session.largest_bytes - 1, 1024)
                server.max_packet_bytes = min(server.max_packet_bytes, largest)
            self._log.warning(
                "{server} refused what was sent of a job: {text} ({code})",
                server=server.name,
                text=shown(outcome.text),
                code=shown(outcome.code),
            )

    # Links.

    def _links(self) -> Iterator[WorkerLink]:
        """Yield all of them, also those that are about to go."""
        for group in self._groups:
            yield from group.connections
        yield from self._retired

    def _connect(self, group: FunctionGroup[WorkerLink]) -> list[WorkerLink]:
        return [self._new_link(server, group) for _, server in self._places]

    def _new_link(self, server: ServerFacts, group: FunctionGroup[WorkerLink]) -> WorkerLink:
        place = next(place for place, facts in self._places if facts is server)
        link = WorkerLink(self, server, group, place)
        if self._is_started and not self._is_stopping:
            link.start()
        return link

    def _retire(self, link: WorkerLink) -> None:
        link.drain()
        if link.is_running:
            self._retired.append(link)

    def _stop_retired(self) -> None:
        for link in list(self._retired):
            link.flush()
            if link.is_idle:
                self._retired.remove(link)
                self.runtime.background(link.stop())

    # Servers that do not answer.

    def _open_sessions(self) -> Iterator[WorkerSession]:
        for link in self._links():
            session = link.session
            if session is not None and session.holds_slot_for_grab:
                yield session

    def _look_for_silent_servers(self) -> None:
        self._look = None
        before, self._open_grabs = self._open_grabs, {}
        if self.slots.is_wanted:
            for session in list(self._open_sessions()):
                if before.get(session) == session.grabs:
                    session.lend_slot()
                else:
                    self._open_grabs[session] = session.grabs
        self.flush()

    # Pauses of functions.

    def _pause(self, name: bytes) -> None:
        """Leave a function to others for a moment: its jobs would go in circles."""
        if name not in self._pauses and not self._is_stopping:
            self._groups.pause(name)
            self._pauses[name] = self.runtime.later(_PAUSE, partial(self._resume, name))

    def _resume(self, name: bytes) -> None:
        del self._pauses[name]
        self._groups.resume(name)
        self.flush()

    # The end.

    async def _stop(self) -> None:
        drained = self._begin_drain()
        timer = self.runtime.later(self._drain_timeout, self._drain_timed_out)
        self.flush()
        await drained
        timer.cancel()
        for stopping in [self.runtime.start(link.stop()) for link in list(self._links())]:
            await stopping
        self._retired.clear()
        await self._runs.cancel()
        # Not before, or jobs whose processes are killed would be told to have failed.
        for stopping in [self.runtime.start(executor.stop()) for executor in self._executors]:
            await stopping
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._is_started = self._is_stopping = False
        self._stops.settle()

    def _begin_drain(self) -> Promise[None]:
        drained = self._drains.add()
        self._takes_no_more = True
        self._log.info("worker stops: takes no more jobs, {count} running", count=len(self._runs.running))
        for pause in self._pauses.values():
            pause.cancel()
        self._pauses.clear()
        self._groups.end_pauses()
        for link in self._links():
            link.drain()
        self._runs.stop_waiting()
        self._grab_patience = self.runtime.later(_GRAB_PATIENCE, self._give_up_grabs)
        return drained

    def _give_up_grabs(self) -> None:
        self._grab_patience = None
        self.flush()

    def _is_done(self, link: WorkerLink) -> bool:
        return link.is_idle or (self._grab_patience is None and link.has_no_jobs)

    def _drained(self) -> None:
        if self._grab_patience is not None:
            self._grab_patience.cancel()
            self._grab_patience = None
        self._drains.settle()

    def _check_drained(self) -> None:
        for link in self._links():
            if link.is_running and self._is_done(link) and self._is_stopping:
                self.runtime.background(link.stop())
        if self._runs.is_idle and all(map(self._is_done, self._links())):
            self._drained()

    def _drain_timed_out(self) -> None:
        self._log.warning(
            "worker stops after {timeout:g} seconds, jobs still running: {jobs}",
            timeout=self._drain_timeout,
            jobs=self._runs.running,
        )
        self._drained()


def places_of(servers: Any, place_of: Callable[[Any], Place]) -> list[Place]:
    """Return the places of the servers that a user has given: several, or one without a list around it.

    Raises:
        ConfigError: there is none, or one makes no sense.
    """
    several = servers if isinstance(servers, Iterable) and not isinstance(servers, str) else [servers]
    places = [place_of(server) for server in several]
    if not places:
        raise ConfigError("a worker needs at least one server")
    return places


def _check_number(name: str, value: object, takes: str, least: float, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} takes {takes}, not {value!r}")


def _check_count(name: str, value: object, least: int) -> None:
    # With one and a half slots the number of free ones would never be none.
    takes = f"a whole number of at least {least}"
    _check_number(name, value, takes, least)
    if not isinstance(value, int):
        raise ConfigError(f"{name} takes {takes}, not {value!r}")


def _encoded(text: str | bytes, what: str) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise ConfigError(f"{what} is text or bytes, not {type(text).__name__}")
    return text
