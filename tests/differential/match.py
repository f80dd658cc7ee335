"""Plays one script to both servers, step by step, and holds every difference against the allowed ones."""

from __future__ import annotations

import attrs

from tests.differential.allowed import EXPLANATIONS
from tests.differential.player import CLOSED, PROFILES, Item, JobView, Ours, Side, Theirs
from tests.differential.rules import ANSWERS
from tests.differential.script import (
    Connect,
    Fatal,
    Handle,
    Leave,
    Line,
    Request,
    Script,
    Send,
    Step,
    line,
    send,
)
from tests.differential.story import Difference, Happening, Jobs, Seen, Story
from tests.kit.gearmand import Gearmand

# What is looked at when a script is over.
_LOOK = [line(text) for text in (b"status", b"prioritystatus", b"workers", b"show jobs", b"show unique jobs")]


@attrs.define
class Report:
    """What became of a script.

    Attributes:
        steps: how many steps were compared.
        planned: how many there were.
        used: the names of the rules that explained differences.
    """

    steps: int = 0
    planned: int = 0
    used: set[str] = attrs.field(factory=set)


class Match:
    """One script and two servers.

    Args:
        script: what to play.
        server: a gearmand of the script's profile.
        tag: six bytes that no other script played to this gearmand had.
    """

    def __init__(self, script: Script, server: Gearmand, tag: bytes) -> None:
        self._script = script
        self._ours = Ours(tag, PROFILES[script.profile][0])
        self._theirs = Theirs(tag, server)
        self._story = Story()
        self._transcript: list[str] = []

    def play(self) -> Report:
        """Plays it.

        Raises:
            AssertionError: a difference is not allowed; the message is the whole transcript.
            Hung: gearmand does not answer any more.
        """
        steps: list[Step] = [*self._script.steps, Connect(), send(-1, *_LOOK)]
        report = Report(planned=len(steps), used=self._story.used)
        try:
            for _ in range(2):
                self._step(Connect())
            for step in steps:
                if not self._ours.live:
                    self._step(Connect())
                report.steps += 1
                if self._step(step):
                    break
        finally:
            self._theirs.close()
        return report

    def _step(self, step: Step) -> bool:
        """Takes one step; returns whether the two go different ways from here."""
        ours, theirs = self._ours, self._theirs
        conn = ours.live[step.who % len(ours.live)] if isinstance(step, Leave | Send) else -1
        before, was_live = ours.jobs(), set(ours.live)
        known = {name.replace(ours.tag, b"@") for name in ours.engine.inspection.functions}
        happening = self._happening(conn, step)
        seen: dict[Side, Seen] = {}
        for side in (theirs, ours):
            if isinstance(step, Connect):
                conn = side.connect()
            elif isinstance(step, Leave):
                side.leave(conn)
            else:
                side.send(conn, step.pieces, step.cut)
                if isinstance(step.pieces[0], Fatal) and not step.pieces[0].is_heard and side is theirs:
                    side.leave(conn)
            seen[side] = side.settle()
        self._note(conn, step, seen)
        if isinstance(step, Send) and isinstance(step.pieces[0], Fatal):
            self._end_alike(conn, step.pieces[0], seen)
        left = frozenset(was_live - set(ours.live))
        parts = [job for handle, job in ours.jobs().items() if b":" in handle]
        if parts:
            # Of a job that our server reduces; gearmand leaves that to workers.
            self._story.used.add("reduce job")
            if happening.is_pipelined:
                return True
            for other in self._concerned(conn, before, parts):
                seen[theirs].pop(other, None)
                seen[ours].pop(other, None)
        self._story.tell(attrs.evolve(happening, left=left), before, ours.jobs(), known)
        is_over = self._compare(attrs.evolve(happening, conn=conn, left=left), seen[theirs], seen[ours])
        return is_over or bool(parts)

    def _concerned(self, conn: int, before: Jobs, parts: list[JobView]) -> set[int]:
        """Who hears of a job that its worker has split: its clients, and workers that can do the parts."""
        clients = {client for job in before.values() if job.worker == conn for client in job.clients}
        functions = {part.function for part in parts}
        return clients | {other for other, name in self._story.registrations if name in functions}

    def _happening(self, conn: int, step: Step) -> Happening:
        requests, lines = [], []
        if isinstance(step, Send):
            for piece in step.pieces:
                if isinstance(piece, Request) and piece.magic == b"\0REQ":
                    args = tuple(
                        self._ours.name(conn, arg) if isinstance(arg, Handle) else arg for arg in piece.args
                    )
                    requests.append((piece.type, args))
                elif isinstance(piece, Line):
                    lines.append(self._ours.shown(conn, piece))
        return Happening(conn, tuple(requests), tuple(lines))

    def _end_alike(self, conn: int, fatal: Fatal, seen: dict[Side, Seen]) -> None:
        """After bytes of which gearmand closes the connection: ours answers, and the peer leaves it too."""
        ours, theirs = self._ours, self._theirs
        their_items, our_items = seen[theirs].pop(conn, [CLOSED]), seen[ours].pop(conn)
        answer = ANSWERS[fatal.rule]
        if their_items != [CLOSED] or not _starts_with(our_items, answer):
            self._fail(conn, their_items, our_items)
        self._story.used.add(fatal.rule)
        if conn in ours.live:
            ours.leave(conn)
            for other, items in ours.settle().items():
                seen[ours][other] += items

    def _compare(self, step: Happening, theirs: Seen, ours: Seen) -> bool:
        self._story.explain_wakeups(step, theirs, ours)
        for conn in theirs:
            difference = Difference(self._story, step, conn == step.conn, theirs[conn], ours[conn])
            for explain in EXPLANATIONS:
                if difference.theirs == difference.ours:
                    break
                explain(difference)
                if difference.is_end:
                    return True
            if difference.theirs != difference.ours:
                self._fail(conn, difference.theirs, difference.ours)
        return False

    def _note(self, conn: int, step: Step, seen: dict[Side, Seen]) -> None:
        self._transcript.append(f"{conn}: {step}")
        for name, side in (("gearmand", self._theirs), ("ours", self._ours)):
            shown = {other: items for other, items in seen[side].items() if items}
            self._transcript.append(f"    {name}: {shown}")

    def _fail(self, conn: int, theirs: object, ours: object) -> None:
        lines = [
            *self._transcript,
            f"unexplained on connection {conn}:",
            f"    gearmand: {theirs}",
            f"    ours:     {ours}",
            f"flagged: { ({handle: rule for handle, (rule, _) in self._story.flagged.items()}) }",
        ]
        raise AssertionError("\n".join(lines))


def _starts_with(items: list[Item], start: Item) -> bool:
    return bool(items) and items[0][0].startswith(start[0]) and items[0][1 : len(start)] == start[1:]
