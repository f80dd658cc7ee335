"""How a server is made of its settings, and what it says and does when it starts."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address

from gearman_twisted.engine.settings import EngineSettings
from gearman_twisted.package import __version__
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
) -> JobServerService:
    """Make a job server of its settings; it does not listen yet.

    Args:
        reactor: what it runs in.
        values: those of settings, by their names; others have their defaults.
        store: where background jobs are kept.
        listen: the places to listen, as ``server_endpoints`` takes them.
        http: those for HTTP.
        tls: how ``listen`` speaks TLS, if it does.
        engine: further settings of the engine.

    Raises:
        ConfigError: a place makes no sense.
    """
    listening = ListeningSettings(**fields_of(ListeningSettings, values))
    how: dict[str, Any] = {"backlog": listening.backlog, "options": listening.socket_options()}
    return JobServerService(
        reactor,
        [end for place in listen for end in server_endpoints(reactor, place, tls=tls, **how)],
        store,
        settings=default_settings(**fields_of(EngineSettings, values), **engine),
        limits=ConnectionLimits(**fields_of(ConnectionLimits, values)),
        http_endpoints=[end for place in http for end in server_endpoints(reactor, place, **how)],
        on_shutdown=reactor.stop,
    )


def say_where(service: JobServerService, store: str, *, tls: bool = False) -> None:
    """Writes to standard output where the server listens and keeps its jobs, and what to try.

    Args:
        service: listens already.
        store: the store's description.
        tls: whether its ports speak TLS.
    """
    lines = [
        f"gearman_twisted {__version__}",
        f"  listening on   {', '.join(map(describe_address, service.addresses))}{' with TLS' if tls else ''}",
    ]
    if service.http_addresses:
        lines.append(f"  HTTP on        {', '.join(map(describe_address, service.http_addresses))}")
    lines.append(f"  keeping jobs   {store}")
    tcp = next((a for a in service.addresses if isinstance(a, IPv4Address | IPv6Address)), None)
    if tcp is not None:
        beside = Path(sys.executable).with_name("gearman")
        command = str(beside) if beside.exists() and not shutil.which("gearman") else "gearman"
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(tcp.host, tcp.host)
        command += " -S" if tls else ""
        lines.append(f"  try it         {command} -h {host} -p {tcp.port} -v -b -f reverse 'Hello World!'")
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()


def collect_seldom() -> None:
    """Has the garbage collector look for garbage seldom, in a process that is there for the server alone.

    Python does it for every 700 objects that are kept, and goes through ever more of them: with many peers
    and queued jobs that was a quarter of the server's CPU time. Hardly anything here is garbage that only
    the collector finds: jobs and connections are freed as soon as nothing refers to them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)
