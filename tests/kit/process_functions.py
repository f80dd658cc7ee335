"""Functions that tests run in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from gearman_twisted.errors import JobException, JobFailed, RetryLater
from gearman_twisted.worker.job import Job


def reverse(job: Job) -> bytes:
    return job.workload[::-1]


def tell(job: Job) -> bytes:
    job.send_status(1, 2)
    job.send_data(b"data ")
    job.send_warning(b"warning")
    return b"%b %b %d" % (job.function, job.handle[:2], job.attempt)


def pid(_job: Job) -> bytes:
    return b"%d" % os.getpid()


def misbehave(job: Job) -> Any:
    """Does what its workload says."""
    what = job.workload.decode()
    if what == "raise":
        raise ValueError("no \udcff")
    if what == "exit":
        raise SystemExit(3)
    if what == "fail":
        raise JobFailed("not today")
    if what == "exception":
        raise JobException(b"\xff\0data")
    if what == "die":
        os._exit(7)
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "text":
        return "text"
    if what == "lock":
        return threading.Lock()
    if what == "large":
        return bytes(job.max_data_bytes + 1)
    if what == "print":
        sys.stdout.write(f"printed {os.getpid()}\n")
        os.write(2, b"no line end")
        os._exit(0)
    return None


def die_first(job: Job) -> bytes:
    """Dies, but not when it finds the file that it leaves then."""
    mark = Path(job.workload.decode())
    if not mark.exists():
        mark.write_bytes(b"")
        os._exit(1)
    return b"second"


def retry(job: Job) -> bytes:
    if job.attempt < 3:
        raise RetryLater(0.01)
    return b"%d" % job.attempt


def wait(job: Job) -> bytes:
    """Says who it is, and waits until there is a file of the name in the workload."""
    job.send_data(b"%d" % os.getpid())
    while not job.workload or not Path(job.workload.decode()).exists():
        threading.Event().wait(0.01)
    return b""


def leave_process(job: Job) -> bytes:
    """Leaves a process behind that has all pipes open until there is a file of the name in the workload."""
    if not os.fork():
        try:
            while not Path(job.workload.decode()).exists():
                threading.Event().wait(0.01)
        finally:
            os._exit(0)
    return b""


def leave_thread(_job: Job) -> bytes:
    """Says who it is, and leaves a thread behind that keeps the process from ending."""
    threading.Thread(target=threading.Event().wait).start()
    return b"%d" % os.getpid()
