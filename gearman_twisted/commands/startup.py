"""What a server says and does when it has started, whichever command started it."""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address

from gearman_twisted.package import __version__
from gearman_twisted.server.service import JobServerService, describe_address


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
