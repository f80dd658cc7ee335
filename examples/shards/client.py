"""Client: one query to all shards at once, and one answer.

python client.py SERVER SINCE
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from typing import Any

from twisted.internet.task import react

from gearman_twisted import GearmanClient
from gearman_twisted.client import map_reduce
from gearman_twisted.errors import GearmanError

YEARS = (2021, 2022, 2023, 2024)


def add_up(answers: list[bytes]) -> dict[str, tuple[int, int]]:
    """Return counts and sums by region over all shards; averages follow from these."""
    totals: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for answer in answers:
        for region, count, cents in json.loads(answer):
            totals[region] = (totals[region][0] + count, totals[region][1] + cents)
    return totals


async def main(reactor: Any, server: str, since: str) -> None:
    """Print a line for each region."""
    parts = [json.dumps({"year": year, "since": since}).encode() for year in YEARS]
    async with GearmanClient(server, reactor=reactor) as client:
        try:
            totals = await map_reduce(client, "sales", parts, add_up)
        except GearmanError as error:
            raise SystemExit(f"no answer: {error}") from error
    for region, (count, cents) in sorted(totals.items()):
        print(
            f"{region:<6}{count:>6} sales{cents / 100:>14.2f} in all{cents / count / 100:>10.2f} on average"
        )


if __name__ == "__main__":
    react(main, sys.argv[1:])
