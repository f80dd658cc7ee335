"""A command that runs for a job: how it is found and started, and how it is given the workload.

Its callers handle its output and its end: ``worker/service/exec_function.py`` and
``commands/gearman/command.py``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from gearman_twisted.errors import ProcessDied
from gearman_twisted.runtime.child import Child
from gearman_twisted.runtime.interfaces import Runtime
from gearman_twisted.worker.job import Job


class CommandProcess(Child):
    """A running command. Input and output are served side by side, so neither can block the other.

    DIFFERS: gearman writes all input before it reads, and hangs with commands that do not.

    Args:
        runtime: the event loop.
        words: see below.
        job: see below.
        reads: which of its output is read.

    Attributes:
        words: the command and its arguments. No shell sees them.
        job: what it is for. Its workload is the command's standard input; ``GEARMAN_HANDLE``,
            ``GEARMAN_FUNCTION`` and ``GEARMAN_UNIQUE`` stand in its environment.
    """

    def __init__(
        self, runtime: Runtime, words: Sequence[str], job: Job, reads: Sequence[int] = (1, 2)
    ) -> None:
        super().__init__(runtime, reads)
        self.words = words
        self.job = job

    def start_command(self) -> None:
        """Start it, and give it the workload. If it ends before it has read all, the rest is dropped.

        Raises:
            ProcessDied: it is not found, or cannot be started; the message is fit for an operator.
        """
        # Each time: a command may be installed or replaced while the worker runs. A child that cannot be
        # executed could only say so with a traceback.
        # DIFFERS: gearman reports the job as complete then, and the child goes on as a second worker.
        find_command(self.words[0])
        environment = {
            **os.environb,
            b"GEARMAN_HANDLE": self.job.handle,
            b"GEARMAN_FUNCTION": self.job.function,
            b"GEARMAN_UNIQUE": self.job.unique,
        }
        try:
            self.start(lambda _numbers: self.words, writes=[0], environment=environment)
        except OSError as error:
            raise ProcessDied(f"the command {self.words[0]!r} cannot be started: {error.strerror}") from error
        self.write(0, self.job.workload)
        self.close_pipe(0)


def find_command(name: str) -> str:
    """Return where a command is, by its name or its path.

    Raises:
        ProcessDied: it is nowhere in ``PATH``, or not executable.
    """
    program = shutil.which(name)
    if program is None:
        raise ProcessDied(f"the command {name!r} is not found, or not executable")
    return program
