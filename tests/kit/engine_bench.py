"""A server whose steps are counted: in opcodes of Python, which are the same on every machine.

``watch`` lets loops in C be counted as well, such as ``list(jobs)`` or ``job in jobs``: it replaces the
containers of an engine by ones that are iterated in Python. What stays hidden are steps within one container
that are no iteration: a slice of a list, ``list.pop(0)``, ``heapify``, the comparison of two containers, a
dictionary that grows; and copies of bytes.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import StoredJob
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet

P = PacketType

CLIENT, WORKER, FIRST_OF_CROWD = 1, 2, 10


def opcodes(action: Callable[[], object]) -> int:
    """How many opcodes an action takes."""
    count = 0

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


class Bench:
    """A server that is spoken to in packets."""

    def __init__(self) -> None:
        self.engine = JobServer(EngineSettings())
        self.now = 1_000_000.0
        self.handles: list[bytes] = []
        for number in (CLIENT, WORKER):
            self.engine.connect(number, "-", self.now)
        self.send(WORKER, P.CAN_DO, b"f")

    def restart(self, settings: EngineSettings) -> None:
        """Start again, with a store."""
        self.engine = JobServer(settings, durable=True)
        self.engine.connect(CLIENT, "-", self.now)

    def restore(self, function: bytes, unique: bytes) -> None:
        """The store had a job."""
        id_ = self.engine.inspection.last_id + 1
        handle = b"H:localhost:%d" % id_
        self.engine.restore(StoredJob(id_, handle, function, unique, b"w", 1), self.now)

    def send(self, number: int, type_: int, *args: bytes) -> bytes:
        """Send a packet; return all that it was answered to its sender."""
        return b"".join(self.engine.receive(number, [Packet(type_, list(args))], self.now).writes[number])

    def submit(self, function: bytes = b"f", unique: bytes = b"", type_: int = P.SUBMIT_JOB) -> bytes:
        """Submit a job and return its handle."""
        return self.send(CLIENT, type_, function, unique, b"w")[12:]

    def grab(self) -> bytes:
        """Grab a job and return its handle."""
        return self.send(WORKER, P.GRAB_JOB)[12:].split(b"\0")[0]

    def costs_of_a_job(self) -> dict[str, int]:
        """What each step of a job's life costs."""
        handles: list[bytes] = []
        steps: dict[str, Callable[[], object]] = {
            "submit": lambda: self.submit(unique=b"new"),
            "join": lambda: self.submit(unique=b"new"),
            "status": lambda: self.send(CLIENT, P.GET_STATUS, b"H:localhost:1"),
            "grab": lambda: handles.append(self.grab()),
            "work": lambda: self.send(WORKER, P.WORK_STATUS, handles[0], b"1", b"2"),
            "complete": lambda: self.send(WORKER, P.WORK_COMPLETE, handles[0], b""),
            "pre-sleep": lambda: self.send(WORKER, P.PRE_SLEEP),
            "tick": lambda: self.engine.tick(self.now),
            "cancel": lambda: self.engine.operations.cancel(self.submit()),
        }
        return {name: opcodes(step) for name, step in steps.items()}


# Containers whose iteration is counted.


class _View:
    """The keys, values or items of a dictionary."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def __len__(self) -> int:
        return len(self._view)

    def __contains__(self, item: object) -> bool:
        return item in self._view

    def __iter__(self) -> Iterator[Any]:
        yield from (each for each in self._view)

    def __reversed__(self) -> Iterator[Any]:
        yield from (each for each in reversed(self._view))


class _Mapping:
    def __iter__(self) -> Iterator[Any]:
        yield from (key for key in super().__iter__())  # type: ignore[misc]

    def __reversed__(self) -> Iterator[Any]:
        yield from (key for key in reversed(super().keys()))  # type: ignore[misc]

    def keys(self) -> _View:
        """The keys."""
        return _View(super().keys())  # type: ignore[misc]

    def values(self) -> _View:
        """The values."""
        return _View(super().values())  # type: ignore[misc]

    def items(self) -> _View:
        """The items."""
        return _View(super().items())  # type: ignore[misc]


class _Sequence:
    def __iter__(self) -> Iterator[Any]:
        yield from (each for each in super().__iter__())  # type: ignore[misc]

    def __contains__(self, item: object) -> bool:
        return any(each == item for each in self)

    def remove(self, item: object) -> None:
        """Remove an item."""
        for _ in self:
            pass
        super().remove(item)  # type: ignore[misc]


class _Dict(_Mapping, dict):  # type: ignore[type-arg,misc]
    pass


class _Ordered(_Mapping, OrderedDict):  # type: ignore[type-arg,misc]
    pass


class _Deque(_Sequence, deque):  # type: ignore[type-arg]
    pass


class _List(_Sequence, list):  # type: ignore[type-arg]
    pass


_WATCHED: dict[type, type] = {dict: _Dict, OrderedDict: _Ordered, deque: _Deque, list: _List}


def watch(engine: JobServer) -> None:
    """Replace all containers of an engine, so that iterating over them is counted."""
    found: dict[int, Any] = {}
    todo: list[Any] = [engine]
    while todo:
        each = todo.pop()
        if id(each) not in found and (type(each) in _WATCHED or type(each) is tuple or _is_part(each)):
            found[id(each)] = each
            todo += _contents(each)
    new = {key: _WATCHED[type(each)]() for key, each in found.items() if type(each) in _WATCHED}

    def replaced(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(replaced, value))
        return new.get(id(value), value)

    for key, each in found.items():
        if isinstance(each, dict):
            for name, value in each.items():
                new[key][replaced(name)] = replaced(value)
        elif isinstance(each, (deque, list)):
            new[key].extend(map(replaced, each))
        elif not isinstance(each, tuple):
            for name in _attributes(each):
                object.__setattr__(each, name, replaced(getattr(each, name)))


def _is_part(value: object) -> bool:
    module = type(value).__module__
    return module.startswith("gearman_twisted.engine") and not isinstance(value, (tuple, int))


def _contents(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, (tuple, deque, list)):
        return list(value)
    return [getattr(value, name) for name in _attributes(value)]


def _attributes(value: object) -> list[str]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
    return [
        name
        for name in [*slots, *getattr(value, "__dict__", ())]
        if name != "__weakref__" and hasattr(value, name)
    ]
