"""The child's side of ``in_process``: one function, called for one job after the other.

Jobs come in by one pipe, what is reported of them goes out by another, both as frames; standard output
and error are left to the function. Nothing is pickled. The child ends when its parent closes the pipe or
dies, and not at signals for the whole group: jobs that run when a worker is told to stop come to their end.
"""

from __future__ import annotations

import importlib
import os
import queue
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from gearman_twisted.errors import JobException, JobFailed, RetryLater
from gearman_twisted.runtime.malloc import give_memory_back
from gearman_twisted.worker.job import Job
from gearman_twisted.worker.session import Assigned

# What a frame is about. JOB goes to the child; all but RETRY and STATUS, which carry numbers, carry bytes.
JOB, DATA, WARNING, STATUS, RESULT, FAILED, EXCEPTION, RAISED, RETRY = range(9)

_FRAME = struct.Struct(">BQ")
# Attempt, largest result, and the lengths of handle, function and unique; the workload is the rest.
_JOB_HEAD = struct.Struct(">QQIII")
_STATUS = struct.Struct(">QQ")
_RETRY = struct.Struct(">d")
_TEXT_HEAD = struct.Struct(">Q")


def frame_head(kind: int, size: int) -> bytes:
    """Return the head of a frame."""
    return _FRAME.pack(kind, size)


def job_frame(job: Job) -> list[bytes]:
    """Return a job as a frame, in pieces, so that the workload is not copied."""
    head = b"".join(
        [
            _JOB_HEAD.pack(
                job.attempt, job.max_data_bytes, len(job.handle), len(job.function), len(job.unique)
            ),
            job.handle,
            job.function,
            job.unique,
        ]
    )
    return [frame_head(JOB, len(head) + len(job.workload)), head, job.workload]


def status_numbers(content: bytes) -> tuple[int, int]:
    """Return the numerator and denominator of a STATUS."""
    numerator, denominator = _STATUS.unpack(content)
    return numerator, denominator


def retry_delay(content: bytes) -> float | None:
    """Return the delay of a RETRY."""
    return _RETRY.unpack(content)[0] if content else None


def raised_texts(content: bytes) -> tuple[bytes, str]:
    """Return the text for the client and the traceback of RAISED or EXCEPTION."""
    (size,) = _TEXT_HEAD.unpack_from(content)
    start = _TEXT_HEAD.size
    return content[start : start + size], content[start + size :].decode("utf-8", "replace")


class Frames:
    """A decoder of frames. Large ones are gathered in a list and joined once."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = _FRAME.size

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return all frames that the data completes, as kind and content."""
        self._chunks.append(data)
        self._have += len(data)
        frames: list[tuple[int, bytes]] = []
        if self._have < self._need:
            return frames
        data = b"".join(self._chunks)
        position = 0
        self._need = _FRAME.size
        while len(data) - position >= _FRAME.size:
            kind, size = _FRAME.unpack_from(data, position)
            start = position + _FRAME.size
            if len(data) - start < size:
                self._need = _FRAME.size + size
                break
            frames.append((kind, data[start : start + size]))
            position = start + size
        rest = data[position:] if position else data
        self._chunks = [rest] if rest else []
        self._have = len(rest)
        return frames


def find_target(target: str) -> Callable[..., Any]:
    """Return the function that ``module:qualified.name`` names.

    Raises:
        ImportError: there is no such module.
        AttributeError: the module has nothing of that name.
    """
    module, _, path = target.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    function: Callable[..., Any] = found
    return function


class _PipeReports:
    """Reports that go to the parent; from any thread of the function's."""

    is_open = True

    def __init__(self, reports: BinaryIO) -> None:
        self._reports = reports
        self._lock = threading.Lock()

    def send(self, kind: int, *content: bytes) -> None:
        """Send a frame."""
        with self._lock:
            self._reports.write(frame_head(kind, sum(map(len, content))))
            for piece in content:
                self._reports.write(piece)
            self._reports.flush()

    def send_data(self, data: bytes) -> None:
        self.send(DATA, data)

    def send_warning(self, data: bytes) -> None:
        self.send(WARNING, data)

    def send_status(self, numerator: int, denominator: int) -> None:
        self.send(STATUS, _STATUS.pack(numerator, denominator))


def _run(function: Callable[[Job], object], job: Job, reports: _PipeReports) -> None:
    """Call the function for a job and report how it ended."""
    try:
        result = job.check_result(function(job))
    except RetryLater as error:
        reports.send(RETRY, b"" if error.delay is None else _RETRY.pack(error.delay))
    except JobException as error:
        reports.send(EXCEPTION, _TEXT_HEAD.pack(len(error.data)), error.data, _traceback())
    except JobFailed as error:
        reports.send(FAILED, str(error).encode("utf-8", "backslashreplace"))
    except BaseException as error:  # noqa: BLE001 - whatever a function raises ends its job, and nothing else
        text = exception_text(error)
        reports.send(RAISED, _TEXT_HEAD.pack(len(text)), text, _traceback())
    else:
        reports.send(RESULT, result)


def exception_text(error: BaseException) -> bytes:
    """Return the text of an exception for a client: ``TypeOfError: message``."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the function's own class
        text = "(no text)"
    return f"{type(error).__name__}: {text}".encode("utf-8", "backslashreplace")


def _traceback() -> bytes:
    return traceback.format_exc().encode("utf-8", "backslashreplace")


def main(target: str, jobs_fd: int, reports_fd: int) -> None:
    """Run jobs until the parent has no more.

    Args:
        target: the function, as ``module:qualified.name``.
        jobs_fd: the pipe by which jobs come.
        reports_fd: the pipe for reports.
    """
    give_memory_back()
    for descriptor in (jobs_fd, reports_fd):
        os.set_inheritable(descriptor, False)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN, which programs that the function starts would inherit.
        signal.signal(number, lambda _number, _frame: None)
    reports = _PipeReports(os.fdopen(reports_fd, "wb"))
    is_at_work = threading.Event()
    jobs: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs_fd, jobs, is_at_work), daemon=True).start()
    function: Callable[[Job], object] | None = None
    while (content := jobs.get()) is not None:
        job = _job(content, reports)
        del content
        is_at_work.set()
        if function is None:
            # With the first job, so that an error has somebody to be reported to.
            try:
                function = find_target(target)
            except BaseException as error:  # noqa: BLE001 - whatever the module raises
                text = b"the function cannot be imported: " + exception_text(error)
                reports.send(RAISED, _TEXT_HEAD.pack(len(text)), text, _traceback())
                is_at_work.clear()
                continue
        _run(function, job, reports)
        is_at_work.clear()


def _job(content: bytes, reports: _PipeReports) -> Job:
    attempt, max_data_bytes, *sizes = _JOB_HEAD.unpack_from(content)
    pieces: list[bytes] = []
    position = _JOB_HEAD.size
    for size in sizes:
        pieces.append(content[position : position + size])
        position += size
    handle, function, unique = pieces
    assigned = Assigned(handle, function, unique, content[position:])
    return Job(assigned, reports, attempt=attempt, max_data_bytes=max_data_bytes)


def _read_jobs(jobs_fd: int, jobs: queue.SimpleQueue[bytes | None], is_at_work: threading.Event) -> None:
    """Queue the jobs that the parent sends. When it is gone, end in the middle of the job."""
    with os.fdopen(jobs_fd, "rb") as source:
        while len(head := source.read(_FRAME.size)) == _FRAME.size:
            _, size = _FRAME.unpack(head)
            content = source.read(size)
            if len(content) < size:
                break
            jobs.put(content)
            del content
    if is_at_work.is_set():
        sys.stderr.flush()
        os._exit(1)
    jobs.put(None)
