"""A function that stops its own worker."""

from __future__ import annotations

from collections.abc import Callable

from gearman_twisted.worker import Job
from tests.kit.worker_rig import Rig, assign, complete


def test_it_does_not_wait_for_itself(make_rig: Callable[..., Rig], logged: list[str]) -> None:
    """What it awaits is there at once, and its result is sent before the end; the log says so."""
    rig = make_rig()

    async def last(job: Job) -> bytes:
        await rig.wait(job)
        await rig.core.stop()
        return b"done"

    rig.register("last", last)
    peer = rig.connect()
    assign(peer, b"last")
    peer.taken()
    rig.pending[0][1].succeed(b"")
    assert complete(b"H:1", b"done") in peer.taken()
    assert logged == ["a function stops its own worker: it does not wait, as its job is waited for"]
    peer.lose()
