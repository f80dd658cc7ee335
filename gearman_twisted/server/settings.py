"""The job server's settings: those of its connections, and the engine's with defaults of this machine."""

from __future__ import annotations

import socket
from typing import Any

import attrs

from gearman_twisted.engine.settings import MIB, EngineSettings, between
from gearman_twisted.package import __version__


@attrs.frozen(kw_only=True)
class ConnectionLimits:
    """What one peer may make the server keep in memory.

    Attributes:
        max_packet_bytes: a packet that announces more is refused, and its connection closed. SQLite
            stores values of up to 1,000,000,000 bytes, so more could not be kept.
        max_output_bytes: a peer that lets more than this wait to be read is closed. Many large results
            fit; a peer that has stopped reading is found before it fills the memory.
        max_unsaved_jobs: a peer with so many submits waiting for the store is not read until half of
            them are saved. Far more than a commit takes, so it never slows a peer that keeps up.
    """

    max_packet_bytes: int = attrs.field(default=1_000_000_000, validator=between(1024, 0xFFFFFFFF))
    max_output_bytes: int = attrs.field(default=256 * MIB, validator=between(65536, 1 << 40))
    max_unsaved_jobs: int = attrs.field(default=10_000, validator=between(1, 1 << 31))


def default_settings(**changes: Any) -> EngineSettings:
    """The engine's settings with what is known of this process and machine filled in."""
    host = "".join(c if c.isascii() and c.isprintable() and c != " " else "-" for c in socket.gethostname())
    known: dict[str, Any] = {
        "handle_prefix": f"H:{host}".encode()[:45],
        "server_version": __version__,
    }
    return EngineSettings(**(known | changes))
