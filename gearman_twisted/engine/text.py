"""The text protocol: commands on top of operations and views."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from gearman_twisted.engine.operations import Operations
from gearman_twisted.engine.outbox import Shutdown, Turn
from gearman_twisted.engine.records import Connection, Gap
from gearman_twisted.engine.saves import Saves
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.engine.views import Views
from gearman_twisted.wire import text

# Rows of a list that are made in one turn: a few milliseconds.
_ROWS = 1_000

_NUMBER = re.compile(rb"\+?([0-9]{1,18})")


class _List:
    """The answer to a command that asks for a list, made in pieces.

    Args:
        rows: what it shows.
        separator: what stands between the cells of a row.

    Attributes:
        gap: the place of the answer, if it takes more than a turn.
    """

    gap: Gap

    def __init__(self, rows: Iterable[Iterable[bytes | int]], separator: bytes = b"\t") -> None:
        self._rows: Iterator[Iterable[bytes | int]] = iter(rows)
        self._separator = separator

    def take(self) -> tuple[bytes, bool]:
        """Return the next rows, and whether they are the last."""
        some = list(islice(self._rows, _ROWS))
        is_last = len(some) < _ROWS
        return text.lines(some, self._separator) + (text.END if is_last else b""), is_last


class TextProtocol:
    """Answers command lines.

    Args:
        turn: the call being handled.
        settings: the engine's.
        operations, views: what commands can do and show.
        saves: says when a cancelled job is gone from the store.
    """

    def __init__(
        self, turn: Turn, settings: EngineSettings, operations: Operations, views: Views, saves: Saves
    ) -> None:
        self._turn = turn
        self._operations = operations
        self._views = views
        self._saves = saves
        self._allows_shutdown = settings.allows_shutdown
        self._values = {
            b"version": settings.server_version.encode(),
            b"verbose": settings.log_level.encode(),
        }
        self._lists: dict[Connection, deque[_List]] = {}

    def receive(self, conn: Connection, args: list[bytes]) -> None:
        """Handle a line."""
        answer = self._answer(conn, args[0])
        if isinstance(answer, _List):
            self._begin(conn, answer)
        elif answer is not None:
            conn.write(self._turn.out, answer)

    # Lists.

    def is_listing(self, conn: Connection) -> bool:
        """Return whether ``go_on`` has more of a list."""
        return conn in self._lists

    def _begin(self, conn: Connection, answer: _List) -> None:
        if conn in self._lists:
            answer.gap = conn.leave_gap(0)
            self._lists[conn].append(answer)
            return
        piece, is_last = answer.take()
        if is_last:
            conn.write(self._turn.out, piece)
        else:
            answer.gap = conn.leave_gap(0)
            conn.begin_reply(self._turn.out, answer.gap, piece)
            self._lists[conn] = deque([answer])

    def go_on(self, conn: Connection) -> None:
        """Send more of a list."""
        lists = self._lists[conn]
        piece, is_last = lists[0].take()
        if not is_last:
            conn.begin_reply(self._turn.out, lists[0].gap, piece)
            return
        conn.fill_gap(self._turn.out, lists.popleft().gap, piece)
        if not lists:
            del self._lists[conn]

    def disconnected(self, conn: Connection) -> None:
        """Forget the lists of a connection that is gone."""
        self._lists.pop(conn, None)

    # Commands.

    def _answer(self, conn: Connection, line: bytes) -> bytes | _List | None:
        """Return the answer to a line; None if the answer may have to wait for the store."""
        command, *args = text.split_command(line)
        if len(args) >= text.MAX_TOKENS:
            # DIFFERS: gearmand closes the connection without an answer.
            return text.error(b"TOO_MANY_ARGUMENTS A+command+takes+at+most+%d+words" % text.MAX_TOKENS)
        word = command.lower()
        if word in self._values:
            return text.value(self._values[word])
        match word:
            case b"getpid":
                return text.value(b"%d" % self._views.process_id)
            case b"ready":
                return self._ready()
            case b"status":
                return self._status()
            case b"prioritystatus":
                return self._priority_status()
            case b"workers":
                return self._workers()
            case b"show" if args:
                return self._show(args)
            case b"cancel" if len(args) >= 2:
                return self._cancel(conn, args)
            case b"create" | b"drop":
                if len(args) != 2 or args[0].lower() != b"function":
                    return _incomplete(command)
                return self._create(args[1]) if word == b"create" else self._drop(args[1])
            case b"maxqueue":
                return self._max_queue(command, args)
            case b"shutdown" if self._allows_shutdown:
                return self._shut_down(args)
        return text.error(b"UNKNOWN_COMMAND Unknown+server+command" + command)

    def _ready(self) -> bytes:
        if not self._views.is_loading:
            return text.OK
        return text.error(b"LOADING The+stored+jobs+are+being+read,+%d+so+far" % self._views.job_count)

    def _status(self) -> _List:
        functions = self._views.functions()
        return _List((f.name, f.total, f.running, f.workers) for f in functions)

    def _priority_status(self) -> _List:
        functions = self._views.functions()
        return _List(
            # Those whose time is to come, or which are being saved, are neither queued nor running; all but
            # a few of the latter have normal priority, where gearmand counts them.
            (f.name, f.queued[0], f.total - f.running - f.queued[0] - f.queued[2], f.queued[2], f.workers)
            for f in functions
        )

    def _workers(self) -> _List:
        return _List(
            ((c.number, c.peer.encode(), c.client_id, b":", *c.functions) for c in self._views.connections()),
            b" ",
        )

    def _show(self, args: list[bytes]) -> bytes | _List:
        match [arg.lower() for arg in args]:
            case [b"jobs"]:
                # The third column says "cancelled, still queued", which we never have.
                return _List(
                    (job.handle, job.attempts, 0, int(job.is_background)) for job in self._views.jobs()
                )
            case [b"scheduled"]:
                return _List(
                    (
                        job.handle,
                        job.function.name,
                        job.unique,
                        int(job.due),
                        job.schedule.text if job.schedule is not None else b"-",
                    )
                    for job in self._views.scheduled()
                )
            case [b"unique", b"jobs"]:
                return _List([job.unique] for job in self._views.jobs())
        return text.error(b"UNKNOWN_SHOW_ARGUMENTS")

    def _cancel(self, conn: Connection, args: list[bytes]) -> bytes | None:
        match args[0].lower(), *args[1:]:
            case b"job", handle:
                # Some clients count the NUL that ends a handle in their packets as part of it.
                is_done = self._operations.cancel(handle.removesuffix(b"\0"))
            case b"unique", function, unique:
                is_done = self._operations.cancel_unique(function, unique)
            case _:
                return text.error(b"UNKNOWN_ERROR")
        if not is_done:
            return text.error(b"UNKNOWN_JOB")
        self._saves.confirm_cancel(conn)
        return None

    def _create(self, name: bytes) -> bytes:
        # DIFFERS: gearmand's answer is CREATE_FUNCTION and the name, which says nothing.
        return text.OK if self._operations.create_function(name) else _no_memory()

    def _drop(self, name: bytes) -> bytes:
        # DIFFERS: gearmand drops one with queued jobs, which can then neither run nor end.
        is_dropped = self._operations.drop_functions(name)
        if is_dropped is None:
            return text.error(b"function not found")
        if not is_dropped:
            return text.error(b"there are still connected workers or executing clients")
        return text.OK

    def _shut_down(self, args: list[bytes]) -> bytes:
        match [arg.lower() for arg in args]:
            case []:
                self._operations.shut_down(Shutdown.NOW)
            case [b"graceful"]:
                self._operations.shut_down(Shutdown.GRACEFUL)
            case _:
                return text.error(b"UNKNOWN_ARGUMENT The+command+is+shutdown+or+shutdown+graceful")
        return text.OK

    def _max_queue(self, command: bytes, args: list[bytes]) -> bytes:
        if not args:
            return _incomplete(command)
        name, *numbers = args
        limits = [_limit(number) for number in numbers[:3]]
        if len(limits) == 1:
            limits *= 3
        high, normal, low = limits + [None] * (3 - len(limits))
        # DIFFERS: gearmand answers OK and keeps nothing when it does not know the function yet.
        if not self._operations.limit(name, (high, normal, low)):
            return _no_memory()
        return text.OK


def _limit(number: bytes) -> int | None:
    match = _NUMBER.match(number)
    return (int(match[1]) or None) if match else None


def _no_memory() -> bytes:
    return text.error(b"MEMORY The+server's+memory+is+used+up")


def _incomplete(command: bytes) -> bytes:
    return text.error(b"INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+" + command)
