"""The mark that makes a function of a module a worker function, and how marked functions are registered.

A mark changes nothing of the function, which can still be called, tested and imported as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, Literal, TypeVar, overload

import attrs

from gearman_twisted.errors import ConfigError
from gearman_twisted.worker.executors import in_process, in_thread

_F = TypeVar("_F", bound=Callable[..., Any])

RunIn = Literal["thread", "process"]

_MARKS = "__gearman_functions__"


@attrs.frozen
class Mark:
    """The settings that a function is marked with; None stands for a worker's default.

    Attributes:
        name: under which it is offered.
        timeout: seconds that a job may take.
        concurrency: how many jobs of it may run at a time.
        run_in: ``thread`` or ``process``, or None for the reactor's thread.
    """

    name: str
    timeout: float | None
    concurrency: int | None
    run_in: RunIn | None


@overload
def function(name: _F) -> _F: ...


@overload
def function(
    name: str | None = None,
    *,
    timeout: float | None = None,
    concurrency: int | None = None,
    run_in: RunIn | None = None,
) -> Callable[[_F], _F]: ...


def function(
    name: Any = None,
    *,
    timeout: float | None = None,
    concurrency: int | None = None,
    run_in: RunIn | None = None,
) -> Any:
    """Mark a function for ``GearmanWorker(functions=...)`` and ``gearman-worker -f MODULE``; a decorator.

    A function may be marked several times, under different names. The numbers mean what they mean for
    ``GearmanWorker.register``, and are checked when the worker is made.

    Args:
        name: under which it is offered; its own name if None.
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


Marked = ModuleType | Callable[..., Any]
# One may stand without a list around it.
MarkedFunctions = Iterable[Marked] | Marked


def function_decorator(register: Callable[..., object], name: Any, **options: Any) -> Any:
    """Return what ``@worker.function`` stands for, with or without parentheses.

    Args:
        register: registers a function under a name, with the options.
        name: the name, or None; or the function, where there are no parentheses.
        options: for ``register``.

    Raises:
        ConfigError: what is decorated has no name of its own, and none was given.
    """

    def decorate(decorated: Any) -> Any:
        own_name = getattr(decorated, "__name__", None) if name is None else name
        if own_name is None:
            raise ConfigError(f"{decorated!r} has no name of its own; write function(NAME)")
        register(own_name, decorated, **options)
        return decorated

    if callable(name):
        decorated, name = name, None
        return decorate(decorated)
    return decorate


def register_marked(register: Callable[..., object], functions: MarkedFunctions) -> None:
    """Register functions that are marked, and all marked ones of modules.

    Raises:
        ConfigError: something is neither, or two functions have the same name.
    """
    several: Any = [functions] if isinstance(functions, ModuleType) or callable(functions) else functions
    if isinstance(several, str | Mapping) or not isinstance(several, Iterable):
        raise ConfigError(
            "functions takes functions or modules that are marked with gearman_twisted.function, "
            f"not {functions!r}"
        )
    seen: dict[str, Any] = {}
    for each in several:
        if isinstance(each, ModuleType):
            found = list(marked_functions(each))
        else:
            found = [(own, each) for own in _marks_of(each)]
        if not found:
            raise ConfigError(f"{each!r} has no function that is marked with gearman_twisted.function")
        for own, marked in found:
            if seen.setdefault(own.name, marked) is not marked:
                raise ConfigError(f"two functions are marked as {own.name!r}")
            placed: Any = marked
            if own.run_in == "thread":
                placed = in_thread(marked)
            elif own.run_in == "process":
                placed = in_process(marked)
            register(own.name, placed, timeout=own.timeout, concurrency=own.concurrency)


def _marks_of(found: Any) -> tuple[Mark, ...]:
    # Anything may stand in a module, such as objects that have all attributes.
    marks: tuple[Mark, ...] = getattr(found, "__dict__", {}).get(_MARKS, ()) if callable(found) else ()
    return marks


def marked_functions(module: ModuleType) -> Iterator[tuple[Mark, Callable[..., Any]]]:
    """Yield the marked functions of a module, also those that it has imported, in their order.

    Raises:
        ConfigError: two of them have the same name.
    """
    seen: dict[str, Any] = {}
    for found in list(vars(module).values()):
        for own in _marks_of(found):
            if seen.setdefault(own.name, found) is not found:
                raise ConfigError(f"{module.__name__!r} has two functions marked as {own.name!r}")
            yield own, found
