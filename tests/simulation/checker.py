"""What must always be true of the server, judged by what it is sent, what it sends, and what it stores.

It follows every packet on its own. Of the engine it looks at nothing but which handles it gave to new jobs
and which jobs it still has.
"""

from __future__ import annotations

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.store.contract import StoredJob
from gearman_twisted.wire.constants import PacketType
from gearman_twisted.wire.packet import Packet
from tests.kit.submits import SUBMITS
from tests.simulation.ledger import Ledger
from tests.simulation.records import Link, Record, Submission

P = PacketType

_ENDINGS = (int(P.WORK_COMPLETE), int(P.WORK_FAIL), int(P.WORK_EXCEPTION))
_GRABS = {
    int(P.GRAB_JOB): int(P.JOB_ASSIGN),
    int(P.GRAB_JOB_UNIQ): int(P.JOB_ASSIGN_UNIQ),
    int(P.GRAB_JOB_ALL): int(P.JOB_ASSIGN_ALL),
}


_NOT_FORGOTTEN = b"ERR NOT_FORGOTTEN "
_ASSIGNS = set(_GRABS.values())
_REDUCES = {int(P.SUBMIT_REDUCE_JOB), int(P.SUBMIT_REDUCE_JOB_BACKGROUND)}


class Checker(Ledger):
    """Watches one server, over its restarts.

    Args:
        rows, durable, prefix, retries, max_reduced_bytes, limited: see ``Ledger``.
        wakeup_timeout: seconds that a woken worker has.
    """

    def __init__(
        self,
        rows: dict[int, StoredJob],
        *,
        durable: bool,
        prefix: bytes,
        retries: int,
        max_reduced_bytes: int,
        limited: bytes | None,
        wakeup_timeout: float,
    ) -> None:
        super().__init__(
            rows,
            durable=durable,
            prefix=prefix,
            retries=retries,
            max_reduced_bytes=max_reduced_bytes,
            limited=limited,
        )
        self._wakeup_timeout = wakeup_timeout
        self._asleep: dict[Link, None] = {}
        self._next_name = 0
        self._replies = {
            int(P.JOB_CREATED): self._created,
            int(P.ERROR): self._refused,
            int(P.NO_JOB): self._no_job,
            int(P.NOOP): self._noop,
            int(P.WORK_DATA): self._told,
            int(P.WORK_WARNING): self._told,
            int(P.WORK_STATUS): self._told,
            int(P.TEXT_LINE): self._text,
        }

    # Connections.

    def started(self, engine: JobServer) -> None:
        """A server starts; the one before it is gone with all connections."""
        self._asleep.clear()
        super().started(engine)

    def connected(self, number: int) -> Link:
        """A peer has connected."""
        self.links[number] = link = Link(number)
        return link

    def lost(self, link: Link) -> None:
        """A connection is lost, before the server knows of it."""
        del self.links[link.number]
        self._asleep.pop(link, None)
        self._give_up(list(link.running))

    # What the server is sent.

    def request(self, link: Link, packet: Packet) -> None:
        """The server is about to be given a packet."""
        type_, args = packet
        if type_ in SUBMITS:
            self._submission(link, packet)
        elif type_ in _GRABS:
            link.expected.append((_GRABS[type_], b""))
            self._wake_up(link)
            link.noop_at = None
        elif type_ in _ENDINGS or type_ in {P.WORK_DATA, P.WORK_WARNING, P.WORK_STATUS}:
            record = self.records.get(args[0])
            if record is None or record.holder is not link:
                self._not_its_own(link, record, packet)
            elif type_ in _ENDINGS:
                if type_ == P.WORK_EXCEPTION:
                    link.excepted = args[0]
                self._finished(record, type_, args[1] if len(args) > 1 else b"")
            elif type_ == P.WORK_DATA and not record.is_over:
                if record.parts is not None:
                    self._split_off(record, args[1])
                elif record.part is not None:
                    self._add_result(record, record.part, args[1])
        elif type_ == P.PRE_SLEEP:
            link.is_asleep = True
            self._asleep[link] = None
        elif type_ == P.CAN_DO:
            self._can_do(link, args[0], 0.0)
        elif type_ == P.CAN_DO_TIMEOUT:
            self._can_do(link, args[0], int(args[1]) / 1000)
        elif type_ == P.CANT_DO:
            if link.abilities.pop(args[0], None) is not None:
                self._give_up([job for job in link.running if job.asked.function == args[0]])
                link.late = {job: times for job, times in link.late.items() if job.asked.function != args[0]}
        elif type_ == P.RESET_ABILITIES:
            link.abilities.clear()
            link.late.clear()
            self._give_up(list(link.running))
        elif type_ == P.GET_STATUS:
            record = self.records.get(args[0])
            is_known = record is not None and record.is_promised and not record.is_over
            link.expected.append((P.STATUS_RES, b"1" if is_known else b""))
        elif type_ == P.GET_STATUS_UNIQUE:
            link.expected.append((P.STATUS_RES_UNIQUE, args[0]))
        elif type_ == P.ECHO_REQ:
            link.expected.append((P.ECHO_RES, args[0]))
        elif type_ == P.OPTION_REQ:
            link.expected.append((P.OPTION_RES, args[0]))
        elif type_ == P.TEXT_LINE:
            self._command(link, args[0])
        elif type_ != P.SET_CLIENT_ID:
            self.fail(f"a peer sent {packet}, of which nothing is known here")

    def _not_its_own(self, link: Link, record: Record | None, packet: Packet) -> None:
        """A connection reports on a job that it does not have, or has no more."""
        type_, args = packet
        if record is None or record not in link.late:
            if type_ == P.WORK_FAIL and link.excepted == args[0]:
                link.excepted = None
            else:
                link.expected.append((P.ERROR, b"JOB_NOT_FOUND"))
        elif type_ == P.WORK_DATA:
            link.late[record] = -1
        elif type_ in _ENDINGS:
            attempts = link.late.pop(record)
            if type_ == P.WORK_EXCEPTION:
                link.excepted = args[0]
            is_as_it_was = record.holder is None and record.attempts == attempts
            if type_ == P.WORK_COMPLETE and is_as_it_was and record.part is None and not record.asked.reducer:
                self._end(record, type_, args[1])

    def _submission(self, link: Link, packet: Packet) -> None:
        type_, args = packet
        priority, is_background = SUBMITS[type_]
        run_at = int(args[2]) if type_ == P.SUBMIT_JOB_EPOCH else 0
        reducer = args[2] if type_ in _REDUCES else b""
        schedule = b" ".join(args[2:7]) if type_ == P.SUBMIT_JOB_SCHED else b""
        asked = Submission(args[0], args[1], args[-1], priority, is_background, run_at, reducer, schedule)
        self._submitted.append(asked)
        link.expected.append(asked)

    def _can_do(self, link: Link, function: bytes, timeout: float) -> None:
        link.abilities[function] = timeout
        self._lanes_of(function)

    def _command(self, link: Link, line: bytes) -> None:
        words = line.split()
        link.expected.append((P.TEXT_LINE, b"." if words[0] != b"cancel" else line))
        record = self.records.get(words[-1])
        is_there = words[-1] in self._jobs or words[-1] in self._makers
        if words[0] == b"cancel" and record is not None and is_there:
            self._end(record, P.WORK_FAIL)

    # What the server sends.

    def reply(self, link: Link, packet: Packet) -> None:
        """The server has sent a packet."""
        type_, args = packet
        handler = self._replies.get(type_)
        if handler is not None:
            handler(link, packet)
        elif type_ in _ENDINGS:
            self._ended(link, packet)
        elif type_ in _ASSIGNS:
            self._assigned(link, packet)
        elif type_ == P.STATUS_RES:
            known = self._answers(link, packet)
            if known and args[1] != known:
                self.fail(f"{args[0]!r} was acknowledged, and the server does not know it")
        elif self._answers(link, packet) != args[0]:
            self.fail(f"{packet} answers another request")
        elif type_ == P.OPTION_RES:
            # Here and not at the request: what is held back from before stays what it was.
            link.wants_exceptions = True

    def _answers(self, link: Link, packet: Packet) -> bytes:
        """Take the request that a reply answers, which must be the oldest one."""
        expected = link.expected.popleft() if link.expected else None
        if expected is None or isinstance(expected, Submission) or expected[0] != packet.type:
            self.fail(f"connection {link.number} was sent {packet} where {expected} was due")
        return expected[1]

    def _created(self, link: Link, packet: Packet) -> None:
        asked = link.expected.popleft() if link.expected else None
        if not isinstance(asked, Submission):
            self.fail(f"connection {link.number} was sent {packet} where {asked} was due")
        handle = packet.args[0]
        record = self.records.get(handle)
        if record is None:
            self.fail(f"JOB_CREATED names {handle!r}, which was never made")
        made = record.asked
        if made.function != asked.function or made.schedule != asked.schedule:
            self.fail(f"{asked} was answered with {handle!r}, which is {made}")
        # What joins a job may want something else of it, unless it can be joined by its workload alone.
        is_same = not asked.schedule and asked.unique not in {b"", b"-"} and made.unique == asked.unique
        if not is_same and (made.workload, made.unique) != (asked.workload, asked.unique):
            self.fail(f"{asked} was answered with {handle!r}, which is {made}")
        if not asked.is_background:
            link.waiting[handle] = link.waiting.get(handle, 0) + 1
            return
        record.is_promised = True
        if self._durable and not record.is_over and record.row_id not in self._rows:
            self.fail(f"{handle!r} was acknowledged before it was stored")

    def _refused(self, link: Link, packet: Packet) -> None:
        expected = link.expected.popleft() if link.expected else None
        code, text = packet.args
        if isinstance(expected, Submission):
            is_full = self._limited == expected.function and text.startswith(b"Job queue is full")
            # Whoever joined a job that was being saved is refused with it.
            if code == b"QUEUE_ERROR" and (is_full or (self._durable and b"not stored" in text)):
                return
        elif expected == (P.ERROR, code):
            return
        self.fail(f"connection {link.number} was sent {packet} where {expected} was due")

    def _assigned(self, link: Link, packet: Packet) -> None:
        self._answers_grab(link, packet)
        handle, function, *_, workload = packet.args
        record = self.records.get(handle)
        if record is None:
            self.fail(f"connection {link.number} was given the unknown {handle!r}")
        asked = record.asked
        if (function, workload) != (asked.function, asked.workload) or (
            packet.type != P.JOB_ASSIGN and packet.args[2] != asked.unique
        ):
            self.fail(f"{packet} is not what was submitted: {asked}")
        if packet.type == P.JOB_ASSIGN_ALL and packet.args[3] != asked.reducer:
            self.fail(f"{packet} does not name the reducer of {asked}")
        if record.holder is not None:
            self.fail(f"{handle!r} is with connection {record.holder.number} and with {link.number}")
        if record.is_over:
            self.fail(f"{handle!r} has ended and was given out again")
        if record.awaits_save:
            self.fail(f"{handle!r} was given out before it was stored")
        if function not in link.abilities:
            self.fail(f"connection {link.number} was given {handle!r} and cannot do {function!r}")
        lanes = self._lanes[function]
        for priority in range(asked.priority):
            if (first := self._first(lanes[priority])) is not None:
                self.fail(f"{handle!r} was given out before {first.handle!r}, which is more urgent")
        first = self._first(lanes[asked.priority])
        if first is None or first.rank != record.rank:
            before = first.handle if first else None
            self.fail(f"{handle!r} was given out out of turn: {before!r} is the first in its lane")
        if first is record:
            lanes[asked.priority].popleft()
        record.rank = 0
        if packet.type == P.JOB_ASSIGN_ALL:
            record.knew_reducer = True
        elif asked.reducer:
            record.parts = []
        record.holder = link
        record.assignments += 1
        link.running[record] = None
        timeout = link.abilities[function]
        if timeout:
            self._remind(record, self.now + max(timeout, 1.0), record.assignments)

    def _answers_grab(self, link: Link, packet: Packet) -> None:
        """Take the grab that an assignment answers; one that asks for reducers is told if there is none."""
        expected = link.expected[0] if link.expected else None
        if packet.type == P.JOB_ASSIGN_UNIQ and expected == (P.JOB_ASSIGN_ALL, b""):
            record = self.records.get(packet.args[0])
            if record is not None and record.asked.reducer:
                self.fail(f"{packet} does not name the reducer of {record.asked}")
            link.expected.popleft()
        else:
            self._answers(link, packet)

    def _no_job(self, link: Link, packet: Packet) -> None:
        expected = link.expected.popleft() if link.expected else None
        if isinstance(expected, Submission) or expected is None or expected[0] not in _GRABS.values():
            self.fail(f"connection {link.number} was sent {packet} where {expected} was due")
        queued = None
        for function in link.abilities:
            theirs = self._engine.inspection.functions[function].lanes
            for lane, in_engine in zip(self._lanes[function], theirs, strict=True):
                if lane and (first := self._first(lane)) is not None:
                    if in_engine.is_loading:
                        return  # what is being read is waited for, and nothing goes before it
                    queued = first
        if queued is not None:
            self.fail(f"connection {link.number} was told NO_JOB, and {queued.handle!r} is queued")

    def _noop(self, link: Link, _packet: Packet) -> None:
        self._wake_up(link)
        link.noop_at = self.now

    def _told(self, link: Link, packet: Packet) -> None:
        if not link.waiting.get(packet.args[0]):
            self.fail(f"connection {link.number} was sent {packet}, for which it does not wait")
        record = self.records[packet.args[0]]
        if packet.type == P.WORK_DATA and record.asked.reducer and not record.knew_reducer:
            self.fail(f"connection {link.number} was sent {packet}, which is a part")

    def _ended(self, link: Link, packet: Packet) -> None:
        type_, args = packet
        handle = args[0].removesuffix(b"\0")
        waiting = link.waiting.get(handle, 0)
        if not waiting:
            self.fail(f"connection {link.number} was sent {packet}, for which it does not wait")
        if waiting == 1:
            del link.waiting[handle]
        else:
            link.waiting[handle] = waiting - 1
        record = self.records.get(handle)
        ending = record.ending if record is not None else None
        sent = (type_, args[1] if len(args) > 1 else b"")
        if ending is not None and ending[0] == P.WORK_EXCEPTION and not link.wants_exceptions:
            ending = (P.WORK_FAIL, b"")
        if ending != sent:
            self.fail(f"connection {link.number} was sent {packet}, and the job ended with {ending}")

    def _text(self, link: Link, packet: Packet) -> None:
        line = packet.args[0]
        expected = link.expected[0] if link.expected else None
        if expected is not None and expected[0] == P.TEXT_LINE and expected[1].startswith(b"cancel"):
            if line == b"OK\r":
                self._confirmed_cancels.add(expected[1].split()[-1])
            elif line != b"ERR UNKNOWN_JOB\r" and not (self._durable and line.startswith(_NOT_FORGOTTEN)):
                self.fail(f"cancel was answered with {line!r}")
        elif expected != (P.TEXT_LINE, b"."):
            self.fail(f"connection {link.number} was sent {packet} where {expected} was due")
        elif line != b".":
            return
        link.expected.popleft()

    def _wake_up(self, link: Link) -> None:
        if link.is_asleep:
            link.is_asleep = False
            del self._asleep[link]

    # What must be true between two steps.

    def check_wakeups(self) -> None:
        """No worker sleeps that could do a queued job, unless another one was woken and is not late.

        Looks at one function at a time, in turns; nothing must be overdue.
        """
        if not self._asleep or not self._names:
            return
        self._next_name = (self._next_name + 1) % len(self._names)
        function = self._names[self._next_name]
        if not any(function in link.abilities and not self._waits_for_load(link) for link in self._asleep):
            return
        if all(self._first(lane) is None for lane in self._lanes[function]):
            return
        earliest = self.now - self._wakeup_timeout - 1e-6
        for link in self.links.values():
            # What a peer is sent while it waits for the store is on its way: it may be a NOOP.
            if function in link.abilities and (
                link.expected or (link.noop_at is not None and link.noop_at >= earliest)
            ):
                return
        self.fail(f"there are jobs of {function!r}, workers that sleep, and none that was woken")

    def _waits_for_load(self, link: Link) -> bool:
        """Whether a job that is being read may be for a worker, which then sleeps until it is there."""
        functions = self._engine.inspection.functions
        return any(lane.is_loading for name in link.abilities for lane in functions[name].lanes)

    def check_all_answered(self) -> None:
        """Nobody waits for anything any more."""
        self.scan()
        for link in self.links.values():
            if link.expected:
                self.fail(f"connection {link.number} was never sent {link.expected[0]}")
            if link.waiting:
                self.fail(f"connection {link.number} was never told the end of {next(iter(link.waiting))!r}")
        for record in self.records.values():
            if record.is_promised and not record.is_over:
                self.fail(f"{record.handle!r} was acknowledged and never ended")
