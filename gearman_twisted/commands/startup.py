"""How a server is made of its settings, and what it says and does when it starts."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.package import __version__
from gearman_twisted.runtime.malloc import give_memory_back
from gearman_twisted.runtime.tls import ServerTls
from gearman_twisted.server.listening import server_endpoints
from gearman_twisted.server.service import JobServerService, describe_address
from gearman_twisted.server.settings import ConnectionLimits, ListeningSettings, default_settings, fields_of
from gearman_twisted.store.contract import IJobStore


def make_service(
    reactor: Any,
    values: Mapping[str, Any],
    store: IJobStore,
    *,
    listen: Sequence[str],
    http: Sequence[str],
    tls: ServerTls | None = None,
    **engine: Any,
) -> tuple[JobServerService, list[bool]]:
    """Make a job server of its settings; it does not listen yet.

    Args:
        reactor: what it runs in.
        values: those of settings, by their names; others have their defaults.
        store: where background jobs are kept.
        listen: the places to listen, as ``server_endpoints`` takes them.
        http: those for HTTP.
        tls: how ``listen`` speaks TLS, if it does.
        engine: further settings of the engine.

    Returns:
        The server, and for each of its addresses whether that speaks TLS.

    Raises:
        ConfigError: a place is invalid.
    """
    listening = ListeningSettings(**fields_of(ListeningSettings, values))
    how: dict[str, Any] = {"backlog": listening.backlog, "options": listening.socket_options()}
    endpoints = [
        (end, tls is not None or place.lower().startswith("ssl:"))
        for place in listen
        for end in server_endpoints(reactor, place, tls=tls, **how)
    ]
    service = JobServerService(
        reactor,
        [end for end, _ in endpoints],
        store,
        settings=default_settings(**fields_of(EngineSettings, values), **engine),
        limits=ConnectionLimits(**fields_of(ConnectionLimits, values)),
        http_endpoints=[end for place in http for end in server_endpoints(reactor, place, **how)],
        on_shutdown=reactor.stop,
    )
    return service, [speaks_tls for _, speaks_tls in endpoints]


def say_where(service: JobServerService, store: str, speak_tls: Sequence[bool]) -> None:
    """Write to standard output where the server listens and keeps its jobs, and what to try.

    Args:
        service: listens already.
        store: the store's description.
        speak_tls: per address, whether it speaks TLS.
    """
    addresses = list(zip(service.addresses, speak_tls, strict=False))
    shown = [f"{describe_address(address)}{' with TLS' if tls else ''}" for address, tls in addresses]
    lines = [f"gearman_twisted {__version__}", f"  listening on   {', '.join(shown)}"]
    if service.http_addresses:
        lines.append(f"  HTTP on        {', '.join(map(describe_address, service.http_addresses))}")
    lines.append(f"  keeping jobs   {store}")
    tcp = [(address, tls) for address, tls in addresses if isinstance(address, IPv4Address | IPv6Address)]
    if tcp:
        # One in the clear, if there is one, as the command then needs no files.
        address, tls = min(tcp, key=lambda pair: pair[1])
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
        where = f"{'-S ' if tls else ''}-h {host} -p {address.port}"
        gearman = f"{_typed('gearman')} {where}"
        lines += [
            f"  try it         {gearman} -w -f wc -- wc -c &   # a worker",
            f"                 {gearman} -f wc 'Hello World!'  # a client",
            f"                 {_typed('gearadmin')} {where} --status",
        ]
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def _typed(command: str) -> str:
    """Return what to type to run one of our commands: the one beside this Python, and not another's."""
    beside = Path(sys.executable).with_name(command)
    found = shutil.which(command)
    # Path.exists() raises for a directory that the user of the server may not enter.
    if not os.access(beside, os.X_OK) or (found and Path(found).absolute() == beside):
        return command
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def tune_memory() -> None:
    """Make the garbage collector run seldom and freed memory go back, in a process for the server alone.

    By default the collector runs for every 700 new objects, over ever more of them: with many peers and
    queued jobs that was a quarter of the server's CPU time. There is hardly anything to find: jobs and
    connections are freed as soon as nothing refers to them. The middle generation stays small, so that its
    collections do not hold up jobs: with ten times the new objects they took 100 ms and more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 2, 100)
    give_memory_back()
