"""Client: ten readers want the same three feeds; each feed is fetched once.

python client.py SERVER SITE
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

from twisted.internet.defer import FirstError, gatherResults
from twisted.internet.task import react

from gearman_twisted import GearmanClient

FEEDS = ("kitchen", "garden", "workshop")
READERS = 10


async def main(reactor: Any, server: str, site: str) -> None:
    """Submit a job for each feed of each reader, and print the results."""
    urls = [f"{site}/{name}.atom".encode() for name in FEEDS] * READERS
    handles: list[bytes] = []

    def created(handle: bytes) -> None:
        handles.append(handle)
        if len(handles) == len(urls):
            print(f"{len(urls)} submissions, {len(set(handles))} jobs", flush=True)

    async with GearmanClient(server, reactor=reactor) as client:
        submitted = [client.submit("fetch", url, unique=unique_of(url), on_created=created) for url in urls]
        try:
            results = await gatherResults(submitted, consumeErrors=True)
        except FirstError as error:
            raise SystemExit(f"no feeds: {error.subFailure.getErrorMessage()}") from error
    for url, result in zip(urls[: len(FEEDS)], results, strict=False):
        print(url.decode(), "has", ", ".join(json.loads(result)))


def unique_of(url: bytes) -> bytes:
    """Return a hash of the URL; 64 bytes, the maximum of a unique."""
    return hashlib.sha256(url).hexdigest().encode()


if __name__ == "__main__":
    react(main, sys.argv[1:])
