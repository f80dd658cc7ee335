"""The engine's settings, checked when they are made.

An invalid value raises ``ConfigError``, which names the setting and says what it takes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs

from gearman_twisted.errors import ConfigError
from gearman_twisted.wire.constants import DEFAULT_PACKET_BYTES, LARGEST_PACKET_BYTES

MIB = 1024 * 1024

_SIZE = re.compile(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)


def size(text: str) -> int:
    """Return the number of bytes for a text such as ``256M`` or ``2GiB``; units are powers of 1024.

    Raises:
        ConfigError: invalid text.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigError(f"takes a size such as 268435456, 256M or 2G, not {text!r}")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def packet_size(text: str) -> int:
    """Return the size of a packet for a text; ``4G``, which is a byte too many, means the largest one.

    Raises:
        ConfigError: invalid text.
    """
    number = size(text)
    return LARGEST_PACKET_BYTES if number == LARGEST_PACKET_BYTES + 1 else number


def between(low: float, high: float) -> Callable[[Any, attrs.Attribute[Any], float], None]:
    """Return a validator for numbers in a range, its ends included."""

    def check(_instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise ConfigError(f"{attribute.name} takes a number from {low} to {high}, not {value!r}")

    return check


def _one_of(*known: str) -> Callable[[Any, attrs.Attribute[Any], str], None]:
    def check(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
        if value not in known:
            raise ConfigError(f"{attribute.name} takes {' or '.join(known)}, not {value!r}")

    return check


def _handle_prefix(_instance: object, attribute: attrs.Attribute[Any], value: bytes) -> None:
    # A handle has to fit libgearman's field of 64 bytes with its NUL, and our numbers take 17 of them.
    if not 1 <= len(value) <= 45 or any(byte <= 0x20 or byte > 0x7E for byte in value):
        raise ConfigError(
            f"{attribute.name} takes 1 to 45 printable characters without blanks, not {value!r}"
        )


@attrs.frozen(kw_only=True)
class EngineSettings:
    """How the job server treats jobs and peers.

    Attributes:
        handle_prefix: the start of every job handle; gearmand's is ``H:`` and the host's name.
        job_retries: how often a job may be taken from a lost worker before it fails; -1 for no limit,
            0 and 1 both mean one attempt (gearmand 2.0 ``--job-retries``).
        exceptions: whether every client gets WORK_EXCEPTION without asking for it (gearmand
            ``--exceptions``).
        wakeup_timeout: seconds that a woken worker has to grab before the next one is woken. Short, as
            the job waits for so long when a worker is stuck; a live one needs milliseconds.
        order: the order in which a worker of several functions gets jobs. ``2.0``, as in gearmand 2.0: by
            priority over all functions, which take turns; ``1.1``: all jobs of the function that was
            registered last, then those of the one before it.
        allows_shutdown: whether the text command ``shutdown`` may end the server.
        max_held_bytes: output of a peer that may wait for the store; a peer with more is closed. Its replies
            stay in order, so while a commit hangs, all results of its other jobs wait too.
        save_timeout: seconds that a background submission waits for an unreachable store before it is
            refused. As long as a database takes to restart, or to fail over to another host.
        memory: bytes that the workloads of all jobs in memory may take before stored jobs that are queued
            are left in the store only; None for no limit. What is read ahead for workers comes on top of it,
            a few MiB for each function and priority that has both workers and such jobs.
        max_memory: bytes that jobs, functions, and what is kept for peers may take together, about; from
            there on new jobs are refused. None for no limit.
        max_reduced_bytes: a reduce job with longer results in total fails; they have to fit a packet, and are
            kept until the last part has ended.
        server_version: what the text command ``version`` answers.
        log_level: what the text command ``verbose`` answers.
        notes_accepted: whether the Outbox reports each accepted submission.
    """

    handle_prefix: bytes = attrs.field(default=b"H:localhost", validator=_handle_prefix)
    job_retries: int = attrs.field(default=-1, validator=between(-1, 255))
    exceptions: bool = False
    wakeup_timeout: float = attrs.field(default=1.0, validator=between(0.001, 3600))
    order: str = attrs.field(default="2.0", validator=_one_of("2.0", "1.1"))
    allows_shutdown: bool = False
    max_held_bytes: int = attrs.field(default=64 * MIB, validator=between(0, 1 << 40))
    save_timeout: float = attrs.field(default=30.0, validator=between(0, 86_400))
    memory: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(0, 1 << 60)))
    max_memory: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(between(1_000_000, 1 << 60))
    )
    max_reduced_bytes: int = attrs.field(default=DEFAULT_PACKET_BYTES, validator=between(0, 0xF0000000))
    server_version: str = "0"
    log_level: str = "ERROR"
    notes_accepted: bool = False
