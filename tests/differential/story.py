"""What happened earlier in a script that makes two servers that are both right answer differently now.

Jobs are known from our server's view; where a difference has a cause that lasts, ``Story`` keeps the cause.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping

import attrs

from gearman_twisted.engine.states import State
from gearman_twisted.wire.constants import MAX_UNIQUE_BYTES, PacketType
from tests.differential.player import Item, JobView
from tests.kit.submits import SUBMITS

P = PacketType

_GRABS = {P.GRAB_JOB, P.GRAB_JOB_UNIQ, P.GRAB_JOB_ALL}
_MAKE_FUNCTIONS = {P.CAN_DO, P.CAN_DO_TIMEOUT, *SUBMITS}
_REDUCES = {P.SUBMIT_REDUCE_JOB, P.SUBMIT_REDUCE_JOB_BACKGROUND}
NOOP: Item = (b"NOOP",)

Seen = dict[int, list[Item]]
Jobs = Mapping[bytes, JobView]


@attrs.frozen
class Happening:
    """One step, as both servers were given it.

    Attributes:
        conn: who acted.
        requests: the packets, handles by their names.
        lines: the text commands.
        left: the connections that were closed in it.
    """

    conn: int
    requests: tuple[tuple[int, tuple[bytes, ...]], ...] = ()
    lines: tuple[bytes, ...] = ()
    left: frozenset[int] = frozenset()

    def types(self) -> set[int]:
        """The types of the packets."""
        return {type_ for type_, _ in self.requests}

    @property
    def is_pipelined(self) -> bool:
        """Whether more than one packet or command was sent."""
        return len(self.requests) + len(self.lines) > 1


class Story:
    """What has happened in a script.

    Attributes:
        flagged: jobs that gearmand will drop, with the rule that says why; ours has ended or will run them.
        born: whether a job was submitted as a background job.
        registrations: how often connections registered functions.
        progress: what the last WORK_STATUS of a job said.
        unheld: functions whose limit gearmand did not take.
        failed_again: how often a connection reported in this step that a job failed after an exception.
    """

    def __init__(self) -> None:
        self.flagged: dict[bytes, tuple[str, JobView]] = {}
        self.born: dict[bytes, bool] = {}
        self.registrations: Counter[tuple[int, bytes]] = Counter()
        # What they were before the last step, and after each registration in it.
        self._stages: list[Counter[tuple[int, bytes]]] = []
        self.progress: dict[bytes, tuple[bytes, bytes]] = {}
        self.unheld: set[bytes] = set()
        self.failed_again = 0
        self._excepted: set[tuple[int, bytes]] = set()
        self.jobs: dict[bytes, JobView] = {}
        self.theirs_woken: set[int] = set()
        self.ours_woken: set[int] = set()
        self._slept_again: set[int] = set()
        self._registered_asleep: set[int] = set()
        self.used: set[str] = set()

    def tell(self, step: Happening, before: Jobs, after: Jobs, known: set[bytes]) -> None:
        """Takes note of a step that both were given.

        Args:
            step: what was done.
            before: our jobs before it.
            after: our jobs after it.
            known: the functions that our server knew before it.
        """
        self.jobs |= before
        self.jobs |= after
        self._stages = [self.registrations.copy()]
        self.failed_again = 0
        for handle, job in after.items():
            if handle not in self.born:
                self.born[handle] = self._was_background(step, job)
        for type_, args in step.requests:
            self._tell_request(step.conn, type_, args)
        for text in step.lines:
            self._tell_line(
                text, known | {args[0] for type_, args in step.requests if type_ in _MAKE_FUNCTIONS}
            )
        for handle, job in before.items():
            if job.clients and job.clients <= step.left:
                rule = "abandoned job"
                if job.is_background:
                    rule = "joined background job" if self.born[handle] else "joined foreground job"
                self.flagged.setdefault(handle, (rule, job))
        for conn in step.left:
            self._forget(conn)

    def _was_background(self, step: Happening, job: JobView) -> bool:
        for type_, args in step.requests:
            is_refused = type_ in _REDUCES and len(args[2]) > MAX_UNIQUE_BYTES
            if type_ in SUBMITS and args[:2] == (job.function, job.unique) and not is_refused:
                return SUBMITS[type_][1]
        return job.is_background

    def _tell_request(self, conn: int, type_: int, args: tuple[bytes, ...]) -> None:
        if type_ in (P.CAN_DO, P.CAN_DO_TIMEOUT):
            self.registrations[conn, args[0]] += 1
            self._stages.append(self.registrations.copy())
            self._registered_asleep.add(conn)
        elif type_ == P.CANT_DO:
            del self.registrations[conn, args[0]]
        elif type_ == P.RESET_ABILITIES:
            self._forget_registrations(conn)
        elif type_ == P.WORK_STATUS:
            self.progress[args[0].rstrip(b"\0")] = (args[1], args[2])
        elif type_ == P.WORK_EXCEPTION:
            self._excepted.add((conn, args[0]))
        elif type_ == P.WORK_FAIL:
            self.failed_again += (conn, args[0].rstrip(b"\0")) in self._excepted
        elif type_ in _GRABS:
            self.theirs_woken.discard(conn)
            self.ours_woken.discard(conn)
            self._slept_again.discard(conn)
            self._registered_asleep.discard(conn)
        elif type_ == P.PRE_SLEEP:
            self.ours_woken.discard(conn)
            if conn in self.theirs_woken:
                self._slept_again.add(conn)

    def _tell_line(self, text: bytes, known: set[bytes]) -> None:
        words = text.split()
        if len(words) == 3 and words[0].lower() == b"cancel" and words[2].rstrip(b"\0") in self.jobs:
            handle = words[2].rstrip(b"\0")
            self.flagged.setdefault(handle, ("cancelled job", self.jobs[handle]))
        elif len(words) > 1 and words[0].lower() == b"maxqueue":
            (self.unheld.discard if words[1] in known else self.unheld.add)(words[1])

    def _forget(self, conn: int) -> None:
        self._forget_registrations(conn)
        self._excepted = {pair for pair in self._excepted if pair[0] != conn}
        for group in (self.theirs_woken, self.ours_woken, self._slept_again, self._registered_asleep):
            group.discard(conn)

    def _forget_registrations(self, conn: int) -> None:
        for key in [key for key in self.registrations if key[0] == conn]:
            del self.registrations[key]

    def surplus(self, function: bytes) -> set[int]:
        """How many registrations too many gearmand counts: before the step, in it, and after it."""
        return {
            sum(times - 1 for (_, name), times in registrations.items() if name == function)
            for registrations in (*self._stages, self.registrations)
        }

    def flagged_in(self, function: bytes) -> list[str]:
        """The rules of the flagged jobs of a function, one for each job."""
        return [rule for rule, job in self.flagged.values() if job.function == function]

    # Wake-ups are seen by many connections at once.

    def explain_wakeups(self, step: Happening, theirs: Seen, ours: Seen) -> None:
        """Takes those wake-ups out that only one server sent, and may have."""
        # The answer to PRE_SLEEP is no wake-up; it has to be the same.
        exempt = {step.conn} if step.requests and step.requests[-1][0] == P.PRE_SLEEP else set()
        is_actor_woken = NOOP in ours.get(step.conn, [])
        if exempt and is_actor_woken:
            # It is up, though gearmand may still take it to be asleep from an earlier PRE_SLEEP.
            self.ours_woken.add(step.conn)
        if step.is_pipelined and theirs.get(step.conn) != ours.get(step.conn):
            # Among several packets of one write it is not compared whether and where the sender itself is
            # woken: with one packet at a time it is.
            exempt = {step.conn}
            for seen, woken in ((theirs, self.theirs_woken), (ours, self.ours_woken)):
                if NOOP in seen.get(step.conn, []):
                    seen[step.conn] = [item for item in seen[step.conn] if item != NOOP]
                    woken.add(step.conn)
                    self.used.add("wakes all")
        their_new = {conn for conn, items in theirs.items() if NOOP in items} - exempt
        our_new = {conn for conn, items in ours.items() if NOOP in items} - exempt
        dropped = {job.function for _, job in self.flagged.values()} if step.left or step.requests else set()
        for conn in their_new - our_new:
            if our_new or is_actor_woken or conn in self.ours_woken:
                self._take(conn, theirs, "wakes all")
            elif conn == step.conn and {P.CANT_DO, P.RESET_ABILITIES} & step.types():
                self._take(conn, theirs, "gives up asleep")
            elif self._has_scheduled(conn):
                self._take(conn, theirs, "scheduled job wakes")
            elif dropped & {function for c, function in self.registrations if c == conn}:
                # It wakes workers for a job that it will drop when they come.
                self._take(conn, theirs, *{rule for rule, job in self.flagged.values()})
        for conn in our_new - their_new:
            if conn in self._slept_again:
                self._take(conn, ours, "sleeps again")
            elif conn in self.theirs_woken:
                self._take(conn, ours, "wakes all")
            elif conn in self._registered_asleep:
                self._take(conn, ours, "registers asleep")
        self.theirs_woken |= their_new
        self.ours_woken |= our_new

    def _has_scheduled(self, conn: int) -> bool:
        functions = {function for c, function in self.registrations if c == conn}
        return any(job.state is State.SCHEDULED and job.function in functions for job in self.jobs.values())

    def _take(self, conn: int, seen: Seen, *rules: str) -> None:
        seen[conn].remove(NOOP)
        self.used.update(rules)


@attrs.define
class Difference:
    """What one connection received in a step.

    Attributes:
        story: what happened before.
        step: what was done.
        is_actor: this connection did it.
        theirs, ours: what it received from each, as long as it is not explained.
        is_end: from here on the two servers rightly do different things.
    """

    story: Story
    step: Happening
    is_actor: bool
    theirs: list[Item]
    ours: list[Item]
    is_end: bool = False

    def settle(self, explains: Callable[[Item, Item], bool], *rules: str) -> None:
        """Makes those pairs equal that are explained."""
        for index, (their, our) in enumerate(zip(self.theirs, self.ours, strict=False)):
            if their != our and explains(their, our):
                self.theirs[index] = our
                self.story.used.update(rules)

    def first(self) -> tuple[Item, Item]:
        """The first pair that differs, lists left out; nothing is an empty item."""
        nothing: Item = ()
        for their, our in itertools.zip_longest(self.theirs, self.ours, fillvalue=nothing):
            is_list = their[:1] == (b"text",) and their[:2] == our[:2] and their[2].endswith(b".\n")
            if their != our and not is_list:
                return their, our
        return (), ()

    def end(self, *rules: str) -> None:
        """The rest of the script cannot be compared."""
        self.is_end = True
        self.story.used.update(rules)
