"""Client: submits an image, and waits for the smaller one.

python client.py SERVER WIDTHxHEIGHT IMAGE RESULT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet.task import react

from gearman_twisted import GearmanClient
from gearman_twisted.errors import GearmanError


async def main(reactor: Any, server: str, size: str, image: str, result: str) -> None:
    """Submit the job and write its result."""
    workload = f"{size}\n".encode() + Path(image).read_bytes()
    async with GearmanClient(server, reactor=reactor) as client:
        try:
            smaller = await client.submit("resize", workload)
        except GearmanError as error:
            raise SystemExit(f"cannot resize {image}: {error}") from error
    Path(result).write_bytes(smaller)
    print(f"{image}: {len(workload)} bytes, {result}: {len(smaller)} bytes")


if __name__ == "__main__":
    react(main, sys.argv[1:])
