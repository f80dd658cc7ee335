"""A job server under test: peers that speak bytes, a clock turned by hand, and a store made of a dict.

Nothing is hidden from the codec: what a peer sends is encoded and decoded by the server's decoder, and
what it reads went through a client's. The farm also holds the engine to what it promises of an Outbox.
"""

from __future__ import annotations

import itertools

from gearman_twisted.engine.jobserver import JobServer
from gearman_twisted.engine.outbox import GivenUp, Outbox, Shutdown, StoredJob
from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.wire.codec import Decoder, encode
from gearman_twisted.wire.constants import REQ, RES, PacketType
from gearman_twisted.wire.packet import Packet

P = PacketType

NOON = 1_000_000.0
"""What the clock says when a farm is made."""

_JOBS_PER_RUN = 1_000_000


def packet(type_: int, *args: bytes) -> Packet:
    """A packet as a decoder returns it, to compare with."""
    return Packet(type_, list(args))


class Peer:
    """One connection to the farm's server: client, worker and operator all at once."""

    def __init__(self, farm: Farm, number: int) -> None:
        self.number = number
        self.unread = bytearray()
        self._farm = farm
        self._requests = Decoder(REQ, takes_text=True)
        self._replies = Decoder(RES)

    def send(self, type_: int, *args: bytes) -> None:
        """Send one packet in a read of its own."""
        self.send_bytes(encode(REQ, type_, *args))

    def send_bytes(self, data: bytes) -> None:
        """Send any bytes, as one read."""
        farm = self._farm
        farm.perform(farm.engine.receive(self.number, self._requests.feed(data), farm.now))

    def read(self) -> list[Packet]:
        """The packets that came since the last read."""
        data, self.unread = bytes(self.unread), bytearray()
        return self._replies.feed(data)

    def read_types(self) -> list[PacketType]:
        """The kinds of the packets that came since the last read."""
        return [PacketType(type_) for type_, _ in self.read()]

    def ask(self, command: bytes) -> bytes:
        """The answer to a line of the text protocol; nothing else may be unread."""
        assert not self.unread
        self.send_bytes(command + b"\n")
        data, self.unread = bytes(self.unread), bytearray()
        return data

    def submit(
        self, workload: bytes = b"", unique: bytes = b"", type_: int = P.SUBMIT_JOB, function: bytes = b"f"
    ) -> bytes:
        """Submit a job and return its handle; JOB_CREATED has to be the only answer."""
        self.send(type_, function, unique, workload)
        [created] = self.read()
        assert created.type == P.JOB_CREATED
        return created.args[0]

    def grab(self) -> bytes | None:
        """Grab a job and return its handle, None for NO_JOB; nothing else may be unread."""
        self.send(P.GRAB_JOB_UNIQ)
        [answer] = self.read()
        assert answer.type in {P.JOB_ASSIGN_UNIQ, P.NO_JOB}
        return answer.args[0] if answer.args else None

    def complete(self, handle: bytes, data: bytes = b"") -> None:
        """End a job well."""
        self.send(P.WORK_COMPLETE, handle, data)

    def sleep(self) -> list[PacketType]:
        """Go to sleep; return the kinds of the packets that came of it, NOOP if there is a job."""
        self.send(P.PRE_SLEEP)
        return self.read_types()

    def leave(self) -> None:
        """Lose the connection."""
        farm = self._farm
        del farm.peers[self.number]
        farm.perform(farm.engine.disconnect(self.number, farm.now))


class Farm:
    """A job server with its clock and its store.

    Attributes:
        now: the time, in seconds since 1970.
        peers: who is connected, by number.
        closes: the numbers of the connections that the server wanted to close.
        shutdowns: how the server was asked to end, each time that it was.
        saves: the jobs that wait for the store to save them.
        given_up: the jobs that the server ended by itself.
        loads: the jobs that wait for the store to read them.
        awaits: the numbers of those who wait for the store to forget.
        forgets_at_once: the store says so as soon as it has forgotten.
        kept: the jobs that the store has, by id.
        forgotten: the ids that the server has ever asked to forget.
    """

    def __init__(self, *, durable: bool = False, settings: EngineSettings | None = None) -> None:
        self.now = NOON
        self.peers: dict[int, Peer] = {}
        self.closes: list[int] = []
        self.shutdowns: list[Shutdown] = []
        self.given_up: list[GivenUp] = []
        self.saves: list[StoredJob] = []
        self.loads: list[tuple[int, list[int]]] = []
        self.awaits: list[int] = []
        self.forgets_at_once = True
        self.kept: dict[int, StoredJob] = {}
        self.forgotten: set[int] = set()
        self.settings = settings or EngineSettings(handle_prefix=b"H:farm")
        self._durable = durable
        self._numbers = itertools.count(1)
        self._runs = itertools.count()
        self.engine = self._start()

    def _start(self) -> JobServer:
        # As the service does it: ids that rise from run to run, though nothing keeps the last one.
        return JobServer(self.settings, durable=self._durable, last_id=next(self._runs) * _JOBS_PER_RUN)

    def connect(self) -> Peer:
        """A new peer."""
        peer = Peer(self, next(self._numbers))
        self.peers[peer.number] = peer
        self.perform(self.engine.connect(peer.number, "192.0.2.1", self.now))
        return peer

    def worker(self, *functions: bytes) -> Peer:
        """A new peer that can do these functions."""
        peer = self.connect()
        for function in functions or (b"f",):
            peer.send(P.CAN_DO, function)
        return peer

    def perform(self, out: Outbox) -> None:
        """Do what the engine wants done."""
        for number, chunks in out.writes.items():
            assert chunks, "an empty list of writes costs the rim a call for nothing"
            self.peers[number].unread += b"".join(chunks)
        for job in out.saves:
            assert self._durable
            assert job.id not in self.forgotten, "an id that was forgotten is never saved again"
        self.saves += out.saves
        for id_ in out.forgets:
            assert id_ not in self.forgotten, "forgotten twice"
            self.kept.pop(id_, None)
        self.forgotten.update(out.forgets)
        self.loads += out.loads
        self.closes += out.closes
        self.given_up += out.given_up
        if out.shutdown is not None:
            self.shutdowns.append(out.shutdown)
        if out.awaits:
            self.awaits.append(out.awaits)
            if self.forgets_at_once:
                self.confirm_forgets()

    def wait(self, seconds: float) -> None:
        """Let time pass, with a tick whenever the engine wants one."""
        end = self.now + seconds
        while (due := self.engine.next_deadline()) <= end:
            self.now = max(self.now, due)
            self.perform(self.engine.tick(self.now))
        self.now = end

    # The store.

    def commit(self) -> list[int]:
        """The store saves what waits, but the server does not know yet; returns the ids to report."""
        saves, self.saves = self.saves, []
        self.kept |= {job.id: job for job in saves if job.id not in self.forgotten}
        return [job.id for job in saves]

    def save_all(self) -> None:
        """The store saves what waits, and says so."""
        self.perform(self.engine.saved(self.commit(), self.now))

    def fail_saves(self, reason: str = "disk full") -> None:
        """The store fails to save what waits, and says so."""
        saves, self.saves = self.saves, []
        self.perform(self.engine.save_failed([job.id for job in saves], reason, self.now))

    def confirm_forgets(self, error: str | None = None) -> None:
        """The store says that it has forgotten everything, or failed to."""
        awaits, self.awaits = self.awaits, []
        for number in awaits:
            self.perform(self.engine.forgotten(number, error, self.now))

    def load_all(self) -> None:
        """The store reads what the server wants back, until that is all."""
        while self.loads:
            number, ids = self.loads.pop(0)
            assert ids
            found = [self.kept[id_] for id_ in ids if id_ in self.kept]
            self.perform(self.engine.loaded(number, found, self.now))

    def restart(self) -> None:
        """The process dies, with all connections and what was not saved, and starts again."""
        self.peers.clear()
        self.saves.clear()
        self.loads.clear()
        self.awaits.clear()
        self.engine = self._start()
        for id_ in sorted(self.kept):
            self.engine.restore(self.kept[id_], self.now)

    def leftovers(self) -> dict[str, object]:
        """All that the server still remembers of jobs and peers; empty when it is idle and alone."""
        return self.engine.inspection.leftovers()
