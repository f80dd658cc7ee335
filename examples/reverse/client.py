"""Client in Python: submits a text, and waits for the result.

python client.py SERVER TEXT
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.task import react

from gearman_twisted import GearmanClient
from gearman_twisted.errors import GearmanError


async def main(reactor: Any, server: str, text: str) -> None:
    """Submit the job and print its result."""
    async with GearmanClient(server, reactor=reactor) as client:
        try:
            result = await client.submit("reverse", text.encode())
        except GearmanError as error:
            raise SystemExit(f"no result: {error}") from error
    print(result.decode())


if __name__ == "__main__":
    react(main, sys.argv[1:])
