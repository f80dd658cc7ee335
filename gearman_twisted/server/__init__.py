"""The job server, as a service for ``twistd`` or an application, and as a factory for any endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gearman_twisted.package import lazy_names

if TYPE_CHECKING:
    from gearman_twisted.engine.settings import EngineSettings
    from gearman_twisted.runtime.tls import ServerTls
    from gearman_twisted.server.connection import GearmanServerFactory, GearmanServerProtocol
    from gearman_twisted.server.listening import server_endpoints
    from gearman_twisted.server.service import JobServerService, describe_address
    from gearman_twisted.server.settings import ConnectionLimits, default_settings
    from gearman_twisted.server.web.jobs import HttpFactory

__all__ = [
    "ConnectionLimits",
    "EngineSettings",
    "GearmanServerFactory",
    "GearmanServerProtocol",
    "HttpFactory",
    "JobServerService",
    "ServerTls",
    "default_settings",
    "describe_address",
    "server_endpoints",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ConnectionLimits": "gearman_twisted.server.settings",
        "EngineSettings": "gearman_twisted.engine.settings",
        "GearmanServerFactory": "gearman_twisted.server.connection",
        "GearmanServerProtocol": "gearman_twisted.server.connection",
        "HttpFactory": "gearman_twisted.server.web.jobs",
        "JobServerService": "gearman_twisted.server.service",
        "ServerTls": "gearman_twisted.runtime.tls",
        "default_settings": "gearman_twisted.server.settings",
        "describe_address": "gearman_twisted.server.service",
        "server_endpoints": "gearman_twisted.server.listening",
    },
)
