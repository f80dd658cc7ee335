"""The log of ``gearmand``, line by line."""

from __future__ import annotations

import os
import re
import syslog
from pathlib import Path

import pytest
from twisted.logger import Logger
from twisted.python.failure import Failure

from gearman_twisted.commands.gearmand.log import LevelObserver, LogFile, LogSink, Syslog


def logger(level: str, *places: LogSink) -> Logger:
    return Logger("test", observer=LevelObserver(level, list(places)))


def test_lines_look_as_those_of_gearmand(tmp_path: Path) -> None:
    """Level, local time, thread and message stand where gearmand has them."""
    log = logger("DEBUG", LogFile(str(tmp_path / "log")))
    log.warn("{what} happened", what="it")
    log.debug("é")
    first, second = (tmp_path / "log").read_text("utf-8").splitlines()
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}"
    assert re.fullmatch(rf"WARNING {time} \[  main \] it happened", first)
    assert re.fullmatch(rf"  DEBUG {time} \[  main \] é", second)


def test_only_the_level_and_above(tmp_path: Path) -> None:
    """A level shows itself and what is worse; an event may have a level that Twisted has not."""
    shown = {}
    for level in ("FATAL", "CRITICAL", "ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"):
        file = tmp_path / level
        log = logger(level, LogFile(str(file)))
        log.debug("debug")
        log.info("info")
        log.info("notice", gearmand_level="NOTICE")
        log.warn("warn")
        log.error("error")
        log.critical("critical")
        log.critical("fatal", gearmand_level="FATAL")
        shown[level] = [line.split()[-1] for line in file.read_text().splitlines()]
    everything = ["debug", "info", "notice", "warn", "error", "critical", "fatal"]
    assert shown == {
        "FATAL": everything[6:],
        "CRITICAL": everything[5:],
        "ERROR": everything[4:],
        "WARNING": everything[3:],
        "NOTICE": everything[2:],
        "INFO": everything[1:],
        "DEBUG": everything,
    }


def test_nobody_can_write_lines_of_his_own(tmp_path: Path) -> None:
    """Line ends in what is logged indent what follows, and other control characters become question marks."""
    logger("INFO", LogFile(str(tmp_path / "log"))).info("{name}", name="a\n  FATAL b\r\x1b[2J\udc80")
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.endswith("] a")
    assert second == "      FATAL b??[2J\\udc80"


def test_a_failure_has_its_traceback(tmp_path: Path) -> None:
    """What is a bug is logged with where it was."""
    failure = Failure(ZeroDivisionError("by nought"))
    logger("ERROR", LogFile(str(tmp_path / "log"))).failure("Bug", failure)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0].startswith("CRITICAL ")
    assert "ZeroDivisionError: by nought" in lines[-1]


def test_syslog_has_priorities_of_its_own() -> None:
    """Syslog gets each line with its priority, and without time and level."""
    sent: list[tuple[int, str]] = []
    log = logger("INFO", Syslog(lambda priority, line: sent.append((priority, line))))
    log.error("one\ntwo")
    log.info("three", gearmand_level="NOTICE")
    assert sent == [
        (syslog.LOG_ERR, "one"),
        (syslog.LOG_ERR, "    two"),
        (syslog.LOG_NOTICE, "three"),
    ]


def test_a_log_file_that_cannot_be_opened_anew_stays(tmp_path: Path) -> None:
    """When the directory is gone, the old file goes on rather than the log."""
    (tmp_path / "logs").mkdir()
    file = LogFile(str(tmp_path / "logs" / "log"))
    os.rename(tmp_path / "logs", tmp_path / "old")  # noqa: PTH104
    with pytest.raises(FileNotFoundError) as caught:
        file.reopen()
    assert caught.value.filename == str(tmp_path / "logs" / "log")
    logger("INFO", file).info("still here")
    assert "still here" in (tmp_path / "old" / "log").read_text()
