"""The mark that makes a function of a module a worker function, for ``twistd gearman-worker -f MODULE``.

It changes nothing of the function, which can still be called, tested and imported as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, TypeVar, overload

import attrs

from gearman_twisted.errors import ConfigError

_F = TypeVar("_F", bound=Callable[..., Any])

_MARKS = "__gearman_functions__"


@attrs.frozen
class Mark:
    """What a function says of itself; None stands for what a worker does by itself.

    Attributes:
        name: under which it is offered.
        timeout: seconds that a job may take.
        concurrency: how many jobs of it may run at a time.
        run_in: ``thread`` or ``process``, or None for the reactor's thread.
    """

    name: str
    timeout: float | None
    concurrency: int | None
    run_in: str | None


@overload
def function(name: _F) -> _F: ...


@overload
def function(
    name: str | None = None,
    *,
    timeout: float | None = None,
    concurrency: int | None = None,
    run_in: str | None = None,
) -> Callable[[_F], _F]: ...


def function(
    name: Any = None,
    *,
    timeout: float | None = None,
    concurrency: int | None = None,
    run_in: str | None = None,
) -> Any:
    """Marks a function of a module as one that a worker of that module offers; a decorator.

    A function may be marked several times, under different names. The numbers mean what they mean for
    ``GearmanWorker.register``, and are checked when the worker is made.

    Args:
        name: under which it is offered; that of the function itself if None.
        timeout: how many seconds a job may take.
        concurrency: how many jobs of it may run at a time, in each process.
        run_in: ``thread`` for a function that blocks, ``process`` for one that computes, None for one that
            is quick, or returns a Deferred or a coroutine.

    Raises:
        ConfigError: ``run_in`` is something else, or what is marked has no name.
    """
    if run_in not in (None, "thread", "process"):
        raise ConfigError(f"run_in takes 'thread', 'process' or None, not {run_in!r}")
    if callable(name):
        # Written without parentheses.
        return function()(name)

    def mark(marked: _F) -> _F:
        own_name = getattr(marked, "__name__", None) if name is None else name
        if own_name is None:
            raise ConfigError(f"{marked!r} has no name of its own; write function(NAME)")
        own = Mark(own_name, timeout, concurrency, run_in)
        setattr(marked, _MARKS, (own, *getattr(marked, _MARKS, ())))
        return marked

    return mark


def marked_functions(module: ModuleType) -> Iterator[tuple[Mark, Callable[..., Any]]]:
    """The marked functions of a module, also those that it has imported, in the order in which they stand.

    Raises:
        ConfigError: two of them have the same name.
    """
    seen: dict[str, Any] = {}
    for found in list(vars(module).values()):
        # Anything may stand in a module, such as objects that have all attributes.
        marks = getattr(found, "__dict__", {}).get(_MARKS, ()) if callable(found) else ()
        for own in marks:
            if seen.setdefault(own.name, found) is not found:
                raise ConfigError(f"{module.__name__!r} has two functions marked as {own.name!r}")
            yield own, found
