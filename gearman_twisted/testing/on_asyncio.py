"""A farm for tests that asyncio runs: its tasks, with the farm's time and network."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn, Protocol

from gearman_twisted.client.on_asyncio import GearmanClient, ServerPool
from gearman_twisted.runtime.interfaces import Timer
from gearman_twisted.runtime.on_asyncio import AsyncioRuntime
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from gearman_twisted.testing.network import ManualClock, MemoryPlace
from gearman_twisted.worker.marks import Marked
from gearman_twisted.worker.on_asyncio import GearmanWorker, WorkerFunction


class _Farm(Protocol):
    retry_delay: float

    def places(self) -> list[MemoryPlace]: ...

    def advanced(self, seconds: float) -> Awaitable[None]: ...


class MemoryRuntime(AsyncioRuntime):
    """The asyncio loop that runs, with the time of a farm, and calls in place of threads and processes.

    Args:
        clock: the farm's.
    """

    can_spawn = False

    def __init__(self, clock: ManualClock) -> None:
        super().__init__("the farm")
        self._time = TwistedRuntime(clock)

    def now(self) -> float:
        return self._time.now()

    def wall_time(self) -> float:
        return self._time.wall_time()

    def later(self, delay: float, call: Callable[[], object]) -> Timer:  # type: ignore[override]
        return self._time.later(delay, call)

    def from_thread(self, call: Callable[..., object], *arguments: object) -> None:
        self._time.from_thread(call, *arguments)

    def in_thread(self, call: Callable[[], object]) -> None:
        self._time.in_thread(call)

    def spawn(self, *_arguments: object, **_options: object) -> NoReturn:
        raise OSError("a farm starts no processes")


class AsyncioFarm:
    """What a test that asyncio runs has of a ``MemoryFarm``: clients and workers of ``gearman_twisted.aio``.

    Bytes move by themselves while the test awaits something; time moves with ``advanced`` only.

    Args:
        farm: the farm, which has the servers.
        runtime: the loop that runs.
    """

    def __init__(self, farm: _Farm, runtime: MemoryRuntime) -> None:
        self._farm = farm
        self._runtime = runtime

    def client(self, **options: Any) -> GearmanClient:
        """Return a client of the first server, with the options of ``gearman_twisted.aio.GearmanClient``."""
        return GearmanClient(self._farm.places()[0], **self._with_defaults(options))

    def pool(self, **options: Any) -> ServerPool:
        """Return a client of all servers, with the options of ``gearman_twisted.aio.ServerPool``."""
        return ServerPool(self._farm.places(), **self._with_defaults(options))

    def worker(
        self, functions: Mapping[str | bytes, WorkerFunction] | Marked | None = None, **options: Any
    ) -> GearmanWorker:
        """Return a worker of all servers, started.

        Args:
            functions: what it does, by name, or marked with ``gearman_twisted.function`` as ``GearmanWorker``
                takes it; more can be registered later.
            options: those of ``gearman_twisted.aio.GearmanWorker``.
        """
        named = functions if isinstance(functions, Mapping) else {}
        marked = () if functions is None or named is functions else functions
        options = {"functions": marked, **self._with_defaults(options)}
        worker = GearmanWorker(self._farm.places(), **options)
        for name, function in named.items():
            worker.register(name, function)
        worker.start()
        return worker

    async def advanced(self, seconds: float) -> None:
        """Let time pass: stop at each time at which something is due, and let it happen."""
        await self._farm.advanced(seconds)

    def _with_defaults(self, options: dict[str, Any]) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            "runtime": self._runtime,
            "retry_policy": lambda _attempt: self._farm.retry_delay,
            "ping_interval": None,
        }
        return {**defaults, **options}
