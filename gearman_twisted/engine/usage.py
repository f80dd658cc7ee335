"""How much memory peers make the server keep, about: a running total, with its limit.

Each part adds what it keeps and takes it off again. Beside the bytes that peers sent, a record costs a fixed
number of bytes, measured with CPython 3.11; so a million empty jobs count too.
"""

from __future__ import annotations

# A job with its handle and its places in the indexes; an offloaded one; a client that waits for a job.
JOB_BYTES = 600
OFFLOADED_BYTES = 120
WAITING_BYTES = 350

# A piece of the results of a reduce job's parts, and a part's place among them.
PIECE_BYTES = 60

# A function; a worker's registration of one; a limit that an operator set. Their names come on top.
FUNCTION_BYTES = 1_000
ABILITY_BYTES = 800
LIMIT_BYTES = 300

# A connection with its transport.
CONNECTION_BYTES = 3_000

# What is kept for small peers when the limit is reached: part of the limit. With it, workers can report
# results and small clients can submit foreground jobs, whatever large peers do.
HEADROOM = 0.1

# A peer that keeps no more than this part of the limit is small.
SMALL = 0.01


class Usage:
    """What the server keeps for its peers.

    Attributes:
        bytes: how much that is now, about.
        of_peers: how much of it goes when the peers go that it is for: transfers, held replies, functions of
            workers.
        limit: from here on new jobs are refused, see ``HEADROOM``.
    """

    __slots__ = ("bytes", "limit", "of_peers")

    def __init__(self, limit: float = float("inf")) -> None:
        self.bytes = 0
        self.of_peers = 0
        self.limit = limit

    def add_for_peer(self, size: int) -> None:
        """Count what is kept for a peer, or no longer if it is negative."""
        self.bytes += size
        self.of_peers += size

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self.bytes >= self.limit

    @property
    def is_over(self) -> bool:
        """Whether the headroom is used up too."""
        return self.bytes >= self.limit * (1 + HEADROOM)
