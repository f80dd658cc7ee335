"""Where ``gearmand`` logs: a file that can be reopened, standard error, syslog.

The lines look as those of the original do.
"""

from __future__ import annotations

import os
import sys
import syslog
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Protocol

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from zope.interface import implementer

from gearman_twisted.commands.gearmand.parser import LEVELS
from gearman_twisted.wire.shown import shown_lines

_NAMES = {
    LogLevel.debug: "DEBUG",
    LogLevel.info: "INFO",
    LogLevel.warn: "WARNING",
    LogLevel.error: "ERROR",
    LogLevel.critical: "CRITICAL",
}
_PRIORITIES = {
    "FATAL": syslog.LOG_EMERG,
    "ALERT": syslog.LOG_ALERT,
    "CRITICAL": syslog.LOG_CRIT,
    "ERROR": syslog.LOG_ERR,
    "WARNING": syslog.LOG_WARNING,
    "NOTICE": syslog.LOG_NOTICE,
    "INFO": syslog.LOG_INFO,
    "DEBUG": syslog.LOG_DEBUG,
}


class LogSink(Protocol):
    """Something that takes log lines."""

    def write(self, level: str, moment: datetime, text: str) -> None:
        """Write one message.

        Args:
            level: one of ``LEVELS``.
            moment: when, in local time.
            text: may have several lines; all but the first are indented.
        """


class LogFile:
    """A log file, which is appended to.

    Args:
        path: its name; a relative one starts at the directory that is current now.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links, once for all
        self._file = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, level: str, moment: datetime, text: str) -> None:
        """Append a line at once, so that nothing is lost in a crash."""
        os.write(self._file, _line(level, moment, text))

    def reopen(self) -> None:
        """Open the file by its name again, as logrotate has moved the old one away.

        Raises:
            OSError: it cannot be opened; the old one stays in use.
        """
        new = self._open()
        os.close(self._file)
        self._file = new


class StandardError:
    """Log lines on standard error."""

    def write(self, level: str, moment: datetime, text: str) -> None:
        """Write a line."""
        sys.stderr.buffer.write(_line(level, moment, text))
        sys.stderr.buffer.flush()


class Syslog:
    """Messages for syslog, which knows the time.

    Args:
        send: takes a priority and a line.
    """

    def __init__(self, send: Callable[[int, str], object] = syslog.syslog) -> None:
        self._send = send
        syslog.openlog("gearmand", syslog.LOG_PID, syslog.LOG_USER)

    def write(self, level: str, _moment: datetime, text: str) -> None:
        """Send each line as a message of its own."""
        for line in text.splitlines():
            self._send(_PRIORITIES[level], line)


@implementer(ILogObserver)
class LevelObserver:
    """Passes on events from a level upward.

    An event may say in ``gearmand_level`` which level it has that Twisted has not.

    Args:
        level: one of ``LEVELS``.
        sinks: where to.
    """

    def __init__(self, level: str, sinks: list[LogSink]) -> None:
        self._rank = LEVELS.index(level)
        self._sinks = sinks

    def __call__(self, event: LogEvent) -> None:
        """Log one event."""
        level = event.get("gearmand_level") or _NAMES[event["log_level"]]
        if LEVELS.index(level) > self._rank:
            return
        text = formatEvent(event)
        if "log_failure" in event:
            text = f"{text}\n{event['log_failure'].getTraceback()}"
        # What peers are called must not make lines of its own; those of a traceback are shown as such.
        text = shown_lines(text.strip()).replace("\t", "?").replace("\n", "\n    ")
        moment = datetime.fromtimestamp(event["log_time"], timezone.utc).astimezone()
        for sink in self._sinks:
            sink.write(level, moment, text)


def _line(level: str, moment: datetime, text: str) -> bytes:
    # COMPAT: in brackets stands the thread, for those who take the log apart.
    line = f"{level:>7} {moment:%Y-%m-%d %H:%M:%S.%f} [  main ] {text}\n"
    return line.encode("utf-8", "backslashreplace")
