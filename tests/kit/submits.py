"""The packets that submit jobs: of which priority, and whether background jobs."""

from __future__ import annotations

from gearman_twisted.wire.constants import PacketType, Priority

P = PacketType

PLAIN_SUBMITS: dict[int, tuple[Priority, bool]] = {
    P.SUBMIT_JOB: (Priority.NORMAL, False),
    P.SUBMIT_JOB_HIGH: (Priority.HIGH, False),
    P.SUBMIT_JOB_LOW: (Priority.LOW, False),
    P.SUBMIT_JOB_BG: (Priority.NORMAL, True),
    P.SUBMIT_JOB_HIGH_BG: (Priority.HIGH, True),
    P.SUBMIT_JOB_LOW_BG: (Priority.LOW, True),
}
"""Those whose arguments are function, unique and workload."""

SUBMITS: dict[int, tuple[Priority, bool]] = {
    **PLAIN_SUBMITS,
    P.SUBMIT_JOB_EPOCH: (Priority.NORMAL, True),
    P.SUBMIT_JOB_SCHED: (Priority.NORMAL, True),
    P.SUBMIT_REDUCE_JOB: (Priority.NORMAL, False),
    P.SUBMIT_REDUCE_JOB_BACKGROUND: (Priority.NORMAL, True),
}
"""All of them."""
