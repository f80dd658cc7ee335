"""Client: submits an invoice for each line of a CSV file, and waits only until the jobs are stored.

python client.py SERVER FILE
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.internet.task import react

from gearman_twisted import GearmanClient
from gearman_twisted.client import Task


def tasks(path: Path) -> Iterator[Task]:
    """Yield a job for each line, read on demand: the file may be larger than memory."""
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            # An invoice that is already queued is not queued again.
            yield Task("invoice", json.dumps(row).encode(), unique=f"invoice-{row['number']}".encode())


async def main(reactor: Any, server: str, file: str) -> None:
    """Submit the jobs, a hundred at a time."""
    count = 0
    async with GearmanClient(server, reactor=reactor) as client:
        async for outcome in client.submit_many(tasks(Path(file)), background=True):
            if outcome.error is not None:
                raise SystemExit(f"line {outcome.index + 2} of {file}: {outcome.error}")
            count += 1
    print(f"{count} invoices will be sent")


if __name__ == "__main__":
    react(main, sys.argv[1:])
