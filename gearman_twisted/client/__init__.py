"""The client: submits jobs, gets their results, and asks job servers for their state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gearman_twisted.package import lazy_names

if TYPE_CHECKING:
    from gearman_twisted.client.admin.core import (
        ConnectionInfo,
        FunctionStatus,
        JobInfo,
        PriorityStatus,
        ScheduledJob,
    )
    from gearman_twisted.client.admin.on_twisted import AdminClient
    from gearman_twisted.client.balancing import Choice
    from gearman_twisted.client.call import Callbacks
    from gearman_twisted.client.many import JobStream, Outcome, PartsFailed, Task, gather, map_reduce
    from gearman_twisted.client.on_twisted import (
        ClientCalls,
        GearmanClient,
        GearmanClientFactory,
        GearmanClientProtocol,
        ServerPool,
        ServiceCalls,
    )
    from gearman_twisted.client.session import JobStatus
    from gearman_twisted.runtime.tls import ClientTls, TlsEndpoint
    from gearman_twisted.wire.constants import Priority
    from gearman_twisted.wire.values import from_json, to_json

__all__ = [
    "AdminClient",
    "Callbacks",
    "Choice",
    "ClientCalls",
    "ClientTls",
    "ConnectionInfo",
    "FunctionStatus",
    "GearmanClient",
    "GearmanClientFactory",
    "GearmanClientProtocol",
    "JobInfo",
    "JobStatus",
    "JobStream",
    "Outcome",
    "PartsFailed",
    "Priority",
    "PriorityStatus",
    "ScheduledJob",
    "ServerPool",
    "ServiceCalls",
    "Task",
    "TlsEndpoint",
    "from_json",
    "gather",
    "map_reduce",
    "to_json",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AdminClient": "gearman_twisted.client.admin.on_twisted",
        "Callbacks": "gearman_twisted.client.call",
        "Choice": "gearman_twisted.client.balancing",
        "ClientCalls": "gearman_twisted.client.on_twisted",
        "ClientTls": "gearman_twisted.runtime.tls",
        "ConnectionInfo": "gearman_twisted.client.admin.core",
        "FunctionStatus": "gearman_twisted.client.admin.core",
        "GearmanClient": "gearman_twisted.client.on_twisted",
        "GearmanClientFactory": "gearman_twisted.client.on_twisted",
        "GearmanClientProtocol": "gearman_twisted.client.on_twisted",
        "JobInfo": "gearman_twisted.client.admin.core",
        "JobStatus": "gearman_twisted.client.session",
        "JobStream": "gearman_twisted.client.many",
        "Outcome": "gearman_twisted.client.many",
        "PartsFailed": "gearman_twisted.client.many",
        "Priority": "gearman_twisted.wire.constants",
        "PriorityStatus": "gearman_twisted.client.admin.core",
        "ScheduledJob": "gearman_twisted.client.admin.core",
        "ServerPool": "gearman_twisted.client.on_twisted",
        "ServiceCalls": "gearman_twisted.client.on_twisted",
        "Task": "gearman_twisted.client.many",
        "TlsEndpoint": "gearman_twisted.runtime.tls",
        "from_json": "gearman_twisted.wire.values",
        "gather": "gearman_twisted.client.many",
        "map_reduce": "gearman_twisted.client.many",
        "to_json": "gearman_twisted.wire.values",
    },
)
