"""The turns of a worker of many functions: which of them is next, without looking through all of them.

Theory of operation. ``Ready`` has the lanes that have jobs, in the order in which they got their first
one. Each worker of many functions has a heap of those lanes that are its own, the next one at the top.
Before it looks at the top, it adds the lanes that have become ready since it did so last. Nothing else keeps
the heap up to date; what is wrong with an entry is found when that comes to the top:

- Its lane is empty: the entry is dropped. When the lane gets a job again, it is among the new ones again.
- Its function was served since, and went behind the others: the entry is put where it belongs now.
- Its function was registered again, and went before the others: that made new entries, and this one is dead.
  Dead entries are dropped, also when they outnumber the living.

So a grab costs a few steps of a heap, and one for each lane that has become ready since the worker's last
grab, but never more than the worker has lanes. Jobs of other functions that are just there cost nothing, and
neither does a worker that sleeps.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from gearman_twisted.engine.lane import DEAD_ENTRIES
from gearman_twisted.wire.constants import Priority


class _Lane(Protocol):
    live: int


class Function(Protocol):
    """What is needed to know of a function: its lanes by priority."""

    @property
    def lanes(self) -> Sequence[_Lane]: ...


class Ranked(Protocol):
    """A worker's registration of a function; the one with the highest rank is served first."""

    rank: int


FunctionT = TypeVar("FunctionT", bound=Function)

# Compared by the first two numbers, which no two lanes of a worker share.
_Entry = tuple[int, int, Priority, FunctionT]


class Ready(Generic[FunctionT]):
    """The functions that have queued jobs, and workers.

    Attributes:
        lanes: by priority, the functions in the order in which they became ready, with rising numbers.
        last: the highest number so far.
    """

    __slots__ = ("lanes", "last")

    def __init__(self) -> None:
        self.lanes: tuple[OrderedDict[FunctionT, int], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self.last = 0

    def add(self, priority: int, function: FunctionT) -> None:
        """A function is ready, unless it was already."""
        lanes = self.lanes[priority]
        if function not in lanes:
            self.last += 1
            lanes[function] = self.last


class Turns(Generic[FunctionT]):
    """The turns of one worker.

    Args:
        abilities: its registrations by function.
        ready: the functions that have jobs.
        old_order: whether all jobs of a function go before those of the next one, see ``Queues.pop``.
    """

    def __init__(
        self, abilities: Mapping[FunctionT, Ranked], ready: Ready[FunctionT], *, old_order: bool
    ) -> None:
        self._abilities = abilities
        self._ready = ready
        self._old_order = old_order
        self._seen = ready.last
        self._heap: list[_Entry[FunctionT]] = []
        # The living entries of the heap, by priority and function.
        self._entries: tuple[dict[FunctionT, _Entry[FunctionT]], ...] = ({}, {}, {})
        for function in abilities:
            self._add(function)

    def registered(self, function: FunctionT) -> None:
        """A function was registered, perhaps again; its rank is the highest."""
        self.given_up(function)
        self._add(function)

    def given_up(self, function: FunctionT) -> None:
        """A function was given up; a no-op for one that is not here."""
        for entries in self._entries:
            entries.pop(function, None)
        living = sum(map(len, self._entries))
        if len(self._heap) > 2 * living + DEAD_ENTRIES:
            self._heap = [entry for entries in self._entries for entry in entries.values()]
            heapq.heapify(self._heap)

    def next(self) -> tuple[FunctionT, Priority] | None:
        """Return the lane whose turn it is; None if all are empty."""
        if self._seen != self._ready.last:
            self._add_new()
        heap = self._heap
        while heap:
            entry = heap[0]
            _, _, priority, function = entry
            entries = self._entries[priority]
            if entries.get(function) is not entry:
                heapq.heappop(heap)
            elif not function.lanes[priority].live:
                heapq.heappop(heap)
                del entries[function]
            elif (current := self._entry(priority, function)) != entry:
                entries[function] = current
                heapq.heapreplace(heap, current)
            else:
                return function, priority
        return None

    def _add_new(self) -> None:
        """Add what has become ready since the last time."""
        seen, self._seen = self._seen, self._ready.last
        if self._seen - seen > len(self._abilities):
            for function in self._abilities:
                self._add(function)
            return
        for priority in Priority:
            entries = self._entries[priority]
            for function, number in reversed(self._ready.lanes[priority].items()):
                if number <= seen:
                    break
                if function in self._abilities and function not in entries:
                    self._put(priority, function)

    def _add(self, function: FunctionT) -> None:
        for priority in Priority:
            if function.lanes[priority].live and function not in self._entries[priority]:
                self._put(priority, function)

    def _put(self, priority: Priority, function: FunctionT) -> None:
        entry = self._entries[priority][function] = self._entry(priority, function)
        heapq.heappush(self._heap, entry)

    def _entry(self, priority: Priority, function: FunctionT) -> _Entry[FunctionT]:
        rank = self._abilities[function].rank
        if self._old_order:
            return -rank, priority, priority, function
        return priority, -rank, priority, function
