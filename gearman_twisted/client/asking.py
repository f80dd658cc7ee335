"""What callers give to a client, checked and made a request; for both kinds of clients."""

from __future__ import annotations

from datetime import datetime

from gearman_twisted.client import requests
from gearman_twisted.client.requests import Request
from gearman_twisted.errors import LocalProtocolError
from gearman_twisted.wire.constants import Priority
from gearman_twisted.wire.names import only_bytes, text_or_bytes

# Each raises TypeError, or LocalProtocolError, if an argument cannot be sent. What they take is said by
# GearmanClient's methods of these names.


def submit(
    function: str | bytes,
    workload: bytes,
    unique: bytes,
    priority: Priority,
    *,
    background: bool = False,
) -> Request:
    """A job to be submitted."""
    return requests.submit_request(
        text_or_bytes(function, "function"),
        only_bytes(workload, "workload"),
        only_bytes(unique, "unique"),
        priority,
        background=background,
    )


def submit_at(function: str | bytes, workload: bytes, unique: bytes, when: float | datetime) -> Request:
    """A job to be run at a time."""
    return requests.submit_request(
        text_or_bytes(function, "function"),
        only_bytes(workload, "workload"),
        only_bytes(unique, "unique"),
        run_at=_seconds(when),
    )


def submit_recurring(function: str | bytes, workload: bytes, unique: bytes, schedule: str) -> Request:
    """A job to be made again and again."""
    return requests.recurring_request(
        text_or_bytes(function, "function"),
        only_bytes(workload, "workload"),
        only_bytes(unique, "unique"),
        schedule,
    )


def submit_reduce(function: str | bytes, workload: bytes, unique: bytes, reducer: str | bytes) -> Request:
    """A job to be split, and reduced."""
    return requests.reduce_request(
        text_or_bytes(function, "function"),
        only_bytes(workload, "workload"),
        only_bytes(unique, "unique"),
        text_or_bytes(reducer, "reducer"),
    )


def status(handle: bytes) -> Request:
    """A question for a job by its handle."""
    return requests.status_request(only_bytes(handle, "handle"))


def status_by_unique(unique: bytes) -> Request:
    """A question for a job by its unique."""
    return requests.unique_status_request(only_bytes(unique, "unique"))


def echo(data: bytes) -> Request:
    """Data to be sent back."""
    return requests.echo_request(only_bytes(data, "data"))


def set_option(option: str | bytes) -> Request:
    """An option to be set."""
    return requests.option_request(text_or_bytes(option, "option"))


def _seconds(when: float | datetime) -> float:
    if isinstance(when, datetime):
        if when.tzinfo is None:
            raise LocalProtocolError(f"when takes a datetime with a time zone, not {when!r}")
        return when.timestamp()
    try:
        return float(when)
    except (ValueError, OverflowError) as error:
        raise LocalProtocolError(f"when takes seconds since 1970 or a datetime, not {when!r}") from error
