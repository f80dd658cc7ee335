"""Those who talk to the simulated server: clients and workers as they are, and some as they should not be."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet

if TYPE_CHECKING:
    from tests.simulation.records import Link
    from tests.simulation.world import World

P = PacketType

_FOREGROUND = (P.SUBMIT_JOB, P.SUBMIT_JOB, P.SUBMIT_JOB_HIGH, P.SUBMIT_JOB_LOW)
_BACKGROUND = (P.SUBMIT_JOB_BG, P.SUBMIT_JOB_BG, P.SUBMIT_JOB_HIGH_BG, P.SUBMIT_JOB_LOW_BG)
_REDUCES = (P.SUBMIT_REDUCE_JOB, P.SUBMIT_REDUCE_JOB_BACKGROUND)
_ASSIGNS = {P.JOB_ASSIGN, P.JOB_ASSIGN_UNIQ, P.JOB_ASSIGN_ALL}
_GRABS = (P.GRAB_JOB, P.GRAB_JOB_UNIQ, P.GRAB_JOB_ALL)


class Peer:
    """A peer, connected or not.

    Attributes:
        link: the checker's view of the connection, None while there is none.
        inbox: what came and was not looked at yet.
        requests: the server's decoder of what it sends.
        replies: its own decoder.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.link: Link | None = None
        self.inbox: deque[Packet] = deque()
        self.requests = Decoder(REQ, takes_text=True)
        self.replies = Decoder(RES, takes_text=True)
        self._unsent = b""

    def forget(self) -> None:
        """The connection is gone, with all that was on its way."""
        self.link = None
        self.inbox.clear()
        self.requests = Decoder(REQ, takes_text=True)
        self.replies = Decoder(RES, takes_text=True)
        self._unsent = b""

    def turn(self) -> None:
        """Do the next thing that it would do."""
        world = self.world
        if self.link is None:
            world.connect(self)
        elif world.chance() < world.conditions.leaving:
            world.lose(self)
        else:
            self._act()
            self._flush()

    def _act(self) -> None:
        raise NotImplementedError

    def send(self, type_: int, *args: bytes) -> None:
        """Send a packet, soon."""
        self._unsent += encode(REQ, type_, *args)

    def send_line(self, line: bytes) -> None:
        """Send a text command, soon."""
        self._unsent += line + b"\n"

    def _flush(self) -> None:
        """Send the pending bytes: mostly at once, sometimes later, sometimes cut anywhere."""
        unsent = self._unsent
        if not unsent:
            return
        chance = self.world.chance
        how = chance()
        if how < 0.85:
            self._unsent = b""
            self.world.deliver(self, unsent)
        elif how < 0.95:
            cut = int(chance() * len(unsent))
            self._unsent = unsent[cut:]
            if cut:
                self.world.deliver(self, unsent[:cut])

    def send_rest(self) -> None:
        """Send all that is still to be sent."""
        unsent, self._unsent = self._unsent, b""
        if unsent:
            self.world.deliver(self, unsent)

    def _submit(self, count: int = 1) -> None:
        world = self.world
        conditions, chance = world.conditions, world.chance
        for _ in range(count):
            world.submissions += 1
            workload = b"%d" % world.submissions
            function = world.functions[int(chance() * len(world.functions))]
            unique = b""
            if chance() < conditions.uniques:
                unique = b"u%d" % int(chance() * 4)
                if unique == b"u3":
                    unique, workload = b"-", b"w%d" % int(chance() * 3)
            elif chance() < 0.05:
                workload += b"." * int(chance() * 10_000)
            kind = chance()
            if kind < conditions.scheduled:
                run_at = int(world.wall()) + int(chance() * 6) - 1
                self.send(P.SUBMIT_JOB_EPOCH, function, unique, b"%d" % run_at, workload)
            elif chance() < conditions.reduced:
                reducer = world.functions[int(chance() * len(world.functions))]
                type_ = _REDUCES[chance() < conditions.background]
                self.send(type_, function, unique, reducer, b"", workload)
            else:
                kinds = _BACKGROUND if chance() < conditions.background else _FOREGROUND
                self.send(kinds[int(chance() * len(kinds))], function, unique, workload)


class Client(Peer):
    """Submits, asks for its jobs, cancels some, and sometimes wants everything at once."""

    def _act(self) -> None:
        world = self.world
        self._read()
        chance = world.chance
        what = chance()
        if what < 0.75:
            if not world.is_full():
                self._submit(1 if chance() < 0.98 else 1 + int(chance() * 40))
        elif what < 0.85:
            if chance() < 10 * world.conditions.recurring:
                self._submit_recurring()
            else:
                self._ask()
        elif what < 0.88:
            if handle := world.some_handle():
                self.send_line(b"cancel job " + handle)
        elif what < 0.89:
            commands = (
                b"status\r\n",
                b"show jobs\n",
                b"workers\n",
                b"show unique jobs\n",
                b"prioritystatus\n",
            )
            self._unsent += commands[int(chance() * len(commands))]
        elif what < 0.90:
            self.send(P.OPTION_REQ, b"exceptions")
        # The rest of the time it waits.

    def _submit_recurring(self) -> None:
        """Submit a recurring job for every minute or two, a known one or a new one."""
        chance = self.world.chance
        function = self.world.functions[int(chance() * len(self.world.functions))]
        unique = b"r%d" % int(chance() * 3)
        minute = b"*" if chance() < 0.8 else b"*/2"
        workload = b"%b %b %d" % (unique, minute, int(chance() * 1.2))
        self.send(P.SUBMIT_JOB_SCHED, function, unique, minute, *[b"*"] * 4, workload)

    def _read(self) -> None:
        for packet in self.inbox:
            if packet.type == P.JOB_CREATED:
                self.world.handles.append(packet.args[0])
        self.inbox.clear()

    def _ask(self) -> None:
        chance = self.world.chance
        what = chance()
        handle = self.world.some_handle()
        if what < 0.5 and handle:
            self.send(P.GET_STATUS, handle)
        elif what < 0.6:
            self.send(P.GET_STATUS_UNIQUE, b"u%d" % int(chance() * 3))
        else:
            self.send(P.ECHO_REQ, b"%d" % int(chance() * 1e9))


class Worker(Peer):
    """Registers, grabs, works, sleeps; and sometimes does something else."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._start()

    def forget(self) -> None:
        """The connection is gone."""
        super().forget()
        self._start()

    def _start(self) -> None:
        self._is_new = True
        self._is_stalled = False
        self._is_asleep = False
        self._found_nothing = False
        self._grabs = 0
        self._jobs: list[bytes] = []
        self._done: bytes | None = None

    @property
    def may_grab(self) -> bool:
        """Whether it may ask for a job now."""
        return True

    def _act(self) -> None:
        world = self.world
        if self._is_stalled:
            # For ever, as far as jobs go; the connection may break.
            if world.chance() < 0.01:
                world.lose(self)
            return
        self._read()
        if self._is_new:
            self._register()
        elif world.chance() < world.conditions.naughtiness:
            self._misbehave()
        elif self._jobs:
            self._work()
        elif self._grabs or self._is_asleep or not self.may_grab:
            pass
        elif self._found_nothing:
            self._found_nothing = False
            self._is_asleep = True
            self.send(P.PRE_SLEEP)
        else:
            self._grab()

    def _read(self) -> None:
        for packet in self.inbox:
            if packet.type in _ASSIGNS:
                self._grabs -= 1
                self._jobs.append(packet.args[0])
                if self.world.chance() < 0.1:
                    # So that parts of reduce jobs, too, are asked for and cancelled.
                    self.world.handles.append(packet.args[0])
                self._is_asleep = False
            elif packet.type == P.NO_JOB:
                self._grabs -= 1
                self._found_nothing = True
            elif packet.type == P.NOOP:
                self._is_asleep = False
                self._found_nothing = False
        self.inbox.clear()

    def _register(self) -> None:
        world = self.world
        chance = world.chance
        self._is_new = False
        if chance() < 0.3:
            self.send(P.SET_CLIENT_ID, b"worker")
        for function in world.functions:
            if chance() < 0.7:
                if chance() < world.conditions.timed:
                    self.send(P.CAN_DO_TIMEOUT, function, b"%d" % int(500 + chance() * 3000))
                else:
                    self.send(P.CAN_DO, function)

    def _grab(self) -> None:
        if self.may_grab:
            self._grabs += 1
            self.send(_GRABS[int(self.world.chance() * 3)])

    def _work(self) -> None:
        chance = self.world.chance
        what = chance()
        handle = self._jobs[0]
        if what < 0.25:
            for _ in range(1 + int(chance() * 3)):
                self.send(P.WORK_DATA, handle, self.world.some_data(b"d"))
        elif what < 0.3:
            self.send(P.WORK_WARNING, handle, b"careful")
        elif what < 0.35:
            self.send(P.WORK_STATUS, handle, b"%d" % int(chance() * 100), b"100")
        elif what < 0.9:
            self._end(handle)
            if chance() < 0.5:
                self._grab()

    def _end(self, handle: bytes) -> None:
        chance = self.world.chance
        if self._jobs and self._jobs[0] == handle:
            self._done = self._jobs.pop(0)
        how = chance()
        if how < 0.9:
            self.send(P.WORK_COMPLETE, handle, self.world.some_data(b"r"))
        elif how < 0.95:
            self.send(P.WORK_FAIL, handle)
        else:
            self.send(P.WORK_EXCEPTION, handle, b"oops")
            if chance() < 0.5:
                self.send(P.WORK_FAIL, handle)  # as Perl's worker does

    def _misbehave(self) -> None:
        world = self.world
        chance = world.chance
        function = world.functions[int(chance() * len(world.functions))]
        what = int(chance() * 10)
        if what == 0:
            self._is_stalled = chance() < 0.3
        elif what in {1, 2}:
            self._grab()
        elif what == 3:
            self.send(P.CANT_DO, function)
        elif what == 4:
            if chance() < 0.3:
                self.send(P.RESET_ABILITIES)
                self._is_new = True
        elif what == 5:
            if self._done is not None:
                self._end(self._done)
        elif what == 6:
            if handle := world.some_handle():
                self._end(handle)
        elif what == 7:
            self.send(P.CAN_DO, function)
        elif what == 8:
            self.send(P.PRE_SLEEP)
            self._is_asleep = True
        else:
            self._is_asleep = False


class Both(Worker):
    """Works, and submits jobs as it does.

    It does not grab while it waits for an answer: what a job is given out for would otherwise be held
    back with the answer, and nobody outside could say when that was.
    """

    @property
    def may_grab(self) -> bool:
        """Whether it may ask for a job now."""
        return not self._unsent and self.link is not None and not self.link.expected

    def _act(self) -> None:
        if self.world.chance() < 0.2 and not self._grabs and not self.world.is_full():
            self._read()
            self._submit()
        else:
            super()._act()

    def _read(self) -> None:
        for packet in self.inbox:
            if packet.type == P.JOB_CREATED:
                self.world.handles.append(packet.args[0])
        super()._read()
