"""The log file of twistd, which can be opened again: twistd keeps its own to itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.logger import ILogObserver, Logger, textFileLogObserver
from twisted.python.logfile import LogFile

_log = Logger()

# A process has one log. twistd makes it by calling a function without arguments.
_paths: list[str] = []
_files: list[LogFile] = []


def keep_log_file(daemon: Any) -> None:
    """Have twistd open its log file here, if it logs to a file of its own.

    Args:
        daemon: the options of twistd, before it has checked them.
    """
    name = daemon["logfile"] or ("" if daemon["nodaemon"] or daemon["debug"] else "twistd.log")
    if name and name != "-" and not daemon["syslog"] and daemon["logger"] is None:
        _paths.append(name)
        daemon["logger"] = f"{__name__}.log_file_observer"


def log_file_observer() -> ILogObserver:
    """Return the observer that writes to the log file; twistd calls it."""
    file = LogFile.fromFullPath(_paths[-1])  # type: ignore[no-untyped-call]
    _files.append(file)
    return textFileLogObserver(file)


def reopen_log_files() -> None:
    """Open the log file by its name again, as logrotate has moved it away; no-op without one."""
    for file in _files:
        try:
            Path(file.path).open("ab").close()  # reopen() lets go of the old file before it opens the new one
            file.reopen()  # type: ignore[no-untyped-call]
        except OSError as error:  # noqa: PERF203 - one file
            _log.error(
                "cannot reopen log file {path}: {reason}; still using the old one",
                path=file.path,
                reason=error.strerror,
            )
