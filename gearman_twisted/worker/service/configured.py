"""A worker made of its settings: functions imported, commands found, an end after so many jobs or seconds."""

from __future__ import annotations

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, cast

import attrs
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.logger import Logger
from zope.interface import implementer

from gearman_twisted.errors import ConfigError, GearmanError
from gearman_twisted.runtime.address import client_endpoint
from gearman_twisted.worker.executors import Executor, in_process, in_thread
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.marks import marked_functions
from gearman_twisted.worker.on_twisted import GearmanWorker, WorkerFunction
from gearman_twisted.worker.processes import OnDeath
from gearman_twisted.worker.service.config import FunctionConfig, WorkerConfig
from gearman_twisted.worker.service.exec_function import exec_function

# How long a worker that ends by itself waits for the jobs that run: as long as they take.
_FOR_EVER = 4_000_000.0
# Processes that were started together do not all end together: the lifetime of each is shorter by up to this.
_LIFETIME_SPREAD = 0.1


class Loaded(NamedTuple):
    """A function that is ready to be registered.

    Attributes:
        function: what is called.
        config: what holds for its jobs.
    """

    function: WorkerFunction
    config: FunctionConfig


def load_functions(config: WorkerConfig) -> dict[str, Loaded]:
    """Import the functions of the settings.

    Returns:
        The functions by their names.

    Raises:
        ConfigError: something cannot be imported or found, or makes no sense.
    """
    found: dict[str, tuple[Any, FunctionConfig]] = {}
    for module in config.modules:
        marked = list(marked_functions(_import(module)))
        for mark, function in marked:
            if found.get(mark.name, (function,))[0] is not function:
                raise ConfigError(f"{mark.name!r} is marked in more than one of {', '.join(config.modules)}")
            own = FunctionConfig(timeout=mark.timeout, concurrency=mark.concurrency, run_in=mark.run_in)
            found[mark.name] = function, own
        if not marked:
            raise ConfigError(
                f"{module!r} has no function that is marked with gearman_twisted.function; "
                f"mark one, or use --function NAME={module}:callable"
            )
    for name, own in config.functions.items():
        if own.exec is not None:
            found[name] = None, own
        elif own.call is not None:
            found[name] = _callable(own.call), own
        elif name in found:
            function, says = found[name]
            found[name] = function, says.changed_by(own)
        else:
            known = {**found, **{name: one for name, one in config.functions.items() if one.call or one.exec}}
            raise ConfigError(
                f"there is no function {name!r}: it has neither call nor exec, and no module marks it; "
                f"there are {', '.join(map(repr, known)) or 'no others'}"
            )
    loaded = {}
    for name, (function, own) in found.items():
        loaded[name] = Loaded(_wrapped(name, function, own), own)
    return loaded


class ConfiguredWorker(Service):
    """The worker that settings describe, as a service that may come to its end by itself.

    Args:
        config: the settings.
        functions: what ``load_functions`` made of them.
        reactor: the reactor to run in.
        on_connected: called each time when there is a connection to a server.
        on_retiring: called when it takes no more jobs, with the reason, unless it was told to stop.
        on_ended: called when it has retired and its jobs have ended.

    Raises:
        GearmanError: an address, a name or a number makes no sense.
    """

    _log = Logger()

    def __init__(
        self,
        config: WorkerConfig,
        functions: Mapping[str, Loaded],
        reactor: Any,
        *,
        on_ended: Callable[[], object],
        on_connected: Callable[[], object] | None = None,
        on_retiring: Callable[[str], object] | None = None,
    ) -> None:
        self._config = config
        self._reactor = reactor
        self._on_ended = on_ended
        self._on_retiring = on_retiring
        servers = [
            _Watched(address, client_endpoint(reactor, address), on_connected) for address in config.servers
        ]
        self._worker = GearmanWorker(
            servers,
            concurrency=config.concurrency,
            client_id=config.client_id,
            drain_timeout=_FOR_EVER,
            reactor=reactor,
        )
        for name, (function, own) in functions.items():
            self._worker.register(
                name,
                _counted(function, self),
                timeout=own.timeout,
                server_timeout=own.server_timeout,
                concurrency=own.concurrency,
            )
        self._jobs_begun = 0
        self._jobs_running = 0
        self._is_retiring = False
        self._lifetime: Any = None
        self._stopped: Deferred[Any] | None = None
        self._has_ended = False
        self._whenever_ended: list[Deferred[None]] = []

    def startService(self) -> None:
        """Connect to the servers."""
        super().startService()  # type: ignore[no-untyped-call]
        self._worker.startService()
        if self._config.max_lifetime is not None:
            lifetime = self._config.max_lifetime * (1 - _LIFETIME_SPREAD * random.random())
            reason = f"it has run for {lifetime:.0f} seconds"
            self._lifetime = self._reactor.callLater(lifetime, self.retire, reason)

    def stopService(self) -> Deferred[None]:
        """Take no more jobs, and wait for those that run, at most for the drain timeout."""
        super().stopService()  # type: ignore[no-untyped-call]
        self._stop()
        if self._has_ended:
            return succeed(None)
        impatience = self._reactor.callLater(self._config.drain_timeout, self._lose_patience)

        def calm(result: None) -> None:
            if impatience.active():
                impatience.cancel()

        ended: Deferred[None] = Deferred()
        self._whenever_ended.append(ended)
        return ended.addCallback(calm)

    def retire(self, reason: str) -> None:
        """Take no more jobs, and end when those that run have ended, however long that takes."""
        if self._is_retiring or self._stopped is not None:
            return
        self._is_retiring = True
        self._log.info("takes no more jobs: {reason}", reason=reason)
        if self._on_retiring is not None:
            self._on_retiring(reason)
        self._stop()

    def job_begins(self, job: Job) -> None:
        """Count a job that begins."""
        self._jobs_running += 1
        if job.attempt == 1:
            self._jobs_begun += 1
        # Before the work: the worker asks for the next job together with the end of this one.
        if self._jobs_begun == self._config.max_jobs:
            self.retire(f"this is job number {self._jobs_begun}")

    def job_ended(self, result: Any) -> Any:
        """Count a job that has ended; returns what it is given, as a callback."""
        self._jobs_running -= 1
        return result

    def _stop(self) -> None:
        if self._lifetime is not None and self._lifetime.active():
            self._lifetime.cancel()
        if self._stopped is None:
            self._stopped = self._worker.stopService()
            self._stopped.addBoth(self._ended)

    def _lose_patience(self) -> None:
        if not self._jobs_running:
            # It closes its connections, which has a limit of its own.
            return
        self._log.warn(
            "worker stops after {seconds:g} seconds; {number} running jobs go back to their servers",
            seconds=self._config.drain_timeout,
            number=self._jobs_running,
        )
        # Asked twice, it waits no longer.
        self._worker.stopService().addBoth(self._ended)

    def _ended(self, _result: object) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        waiting, self._whenever_ended = self._whenever_ended, []
        for ended in waiting:
            ended.callback(None)
        if self._is_retiring:
            self._on_ended()


@implementer(IStreamClientEndpoint)
@attrs.frozen
class _Watched:
    """An endpoint that tells of its connections.

    Attributes:
        address: as the user wrote it.
        endpoint: what connects.
        on_connected: called for each connection, if it is not None.
    """

    address: str
    endpoint: IStreamClientEndpoint
    on_connected: Callable[[], object] | None

    def __repr__(self) -> str:
        return self.address

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803 - IStreamClientEndpoint
        connecting: Deferred[IProtocol] = self.endpoint.connect(protocolFactory)
        return connecting.addCallback(self._connected)

    def _connected(self, protocol: IProtocol) -> IProtocol:
        if self.on_connected is not None:
            self.on_connected()
        return protocol


class _CountedExecutor(Executor):
    """An executor whose jobs are counted."""

    def __init__(self, executor: Executor, worker: ConfiguredWorker) -> None:
        self._executor = executor
        self._worker = worker
        self.concurrency = executor.concurrency
        self.can_be_stopped = executor.can_be_stopped
        self.bind = executor.bind  # type: ignore[method-assign]
        self.stop = executor.stop  # type: ignore[method-assign]

    def __call__(self, job: Job) -> Deferred[bytes | None]:
        self._worker.job_begins(job)
        try:
            done: Any = self._executor(job)
        except BaseException:
            self._worker.job_ended(None)
            raise
        ended: Deferred[bytes | None] = done.addBoth(self._worker.job_ended)
        return ended


def _counted(function: WorkerFunction, worker: ConfiguredWorker) -> WorkerFunction:
    """Return the function with its jobs counted."""
    if isinstance(function, Executor):
        return _CountedExecutor(function, worker)

    def call(job: Job) -> Any:
        worker.job_begins(job)
        result: Any = None
        try:
            result = function(job)
            if isinstance(result, Coroutine):
                result = Deferred.fromCoroutine(result)
        finally:
            if not isinstance(result, Deferred):
                worker.job_ended(None)
        return result.addBoth(worker.job_ended) if isinstance(result, Deferred) else result

    return call


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        # Whatever the user's module raises is a reason not to start.
        raise ConfigError(f"cannot import {module!r}: {type(error).__name__}: {error}") from error


def _callable(target: str) -> Any:
    """Return what ``module:path`` names."""
    module, _, path = target.partition(":")
    found = _import(module)
    for name in path.split("."):
        if not hasattr(found, name):
            raise ConfigError(f"{module!r} has no {path!r}")
        found = getattr(found, name)
    if not callable(found):
        raise ConfigError(f"{target} is {type(found).__name__}, not something to call")
    return found


def _wrapped(name: str, function: Any, config: FunctionConfig) -> WorkerFunction:
    """Return the function wrapped for where it runs."""
    try:
        return _placed(function, config)
    except GearmanError as error:
        raise ConfigError(f"{name!r}: {error}") from error


def _placed(function: Any, config: FunctionConfig) -> WorkerFunction:
    config.check()
    if config.exec is not None:
        return exec_function(config.exec, lines=bool(config.lines))
    if config.run_in is not None and isinstance(function, Executor):
        raise ConfigError("it runs in threads or processes already, so leave run_in out")
    if config.run_in == "thread":
        return in_thread(function)
    if config.run_in == "process":
        if inspect.iscoroutinefunction(function):
            raise ConfigError("it is an async function, which runs without run_in")
        return in_process(
            config.call or function,
            processes=config.processes,
            on_death=cast("OnDeath", config.on_death or "fail"),
            max_jobs=config.max_jobs,
        )
    worker_function: WorkerFunction = function
    return worker_function


def look_for_modules_in(directory: str) -> None:
    """Find modules there too: twistd does not look in the directory in which it is started."""
    if directory not in sys.path:
        sys.path.insert(0, directory)
