"""asyncio as the event loop of a farm's clients and workers: its tasks, with the farm's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, TypeVar

from gearman_twisted.runtime.interfaces import Log, Runtime, Timer
from gearman_twisted.runtime.on_asyncio import AsyncioRuntime, FuturePromise
from gearman_twisted.runtime.on_twisted import TwistedRuntime
from gearman_twisted.testing.network import ManualClock

_T = TypeVar("_T")


class MemoryRuntime(Runtime):
    """The asyncio loop that runs, with the time of a farm.

    Args:
        clock: the farm's.
    """

    cancelled: type[BaseException] = asyncio.CancelledError
    can_spawn = False

    def __init__(self, clock: ManualClock) -> None:
        self._loop = AsyncioRuntime("the farm")
        self._time = TwistedRuntime(clock)

    def now(self) -> float:
        return self._time.now()

    def wall_time(self) -> float:
        return self._time.wall_time()

    def later(self, delay: float, call: Callable[[], object]) -> Timer:
        return self._time.later(delay, call)

    def from_thread(self, call: Callable[..., object], *arguments: object) -> None:
        self._time.from_thread(call, *arguments)

    def promise(self, on_cancel: Callable[[], object] | None = None) -> FuturePromise:
        return self._loop.promise(on_cancel)

    def start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        return self._loop.start(work)

    def background(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[object]:
        return self._loop.background(work)

    def watch(
        self, result: object, ended: Callable[[object, BaseException | None], object]
    ) -> Callable[[], object] | None:
        return self._loop.watch(result, ended)

    def in_thread(self, call: Callable[[], object]) -> None:
        # The clock's way, which starts none.
        self._time.in_thread(call)

    def spawn(self, *_arguments: object, **_options: object) -> NoReturn:
        raise OSError("a farm starts no processes")

    def log(self, name: str) -> Log:
        return self._loop.log(name)
