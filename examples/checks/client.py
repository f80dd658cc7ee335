"""Client: submits each check of a list once, for any free worker.

python client.py SERVER FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from twisted.internet.task import react

from gearman_twisted import GearmanClient
from gearman_twisted.errors import GearmanError


async def main(reactor: Any, server: str, file: str) -> None:
    """Submit a background job for each check."""
    checks = json.loads(Path(file).read_bytes())
    async with GearmanClient(server, reactor=reactor) as client:
        for check in checks:
            # A check that is still queued from the last run is not queued again.
            unique = f"{check['host']}/{check['service']}".encode()
            try:
                await client.submit_background("check", json.dumps(check).encode(), unique=unique)
            except GearmanError as error:
                raise SystemExit(f"cannot submit {unique.decode()}: {error}") from error
    print(f"{len(checks)} checks will be done")


if __name__ == "__main__":
    react(main, sys.argv[1:])
