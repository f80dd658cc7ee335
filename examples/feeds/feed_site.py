"""A test site: a few Atom feeds, and how often each was fetched.

python feed_site.py PORT
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any
from xml.sax.saxutils import escape

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

FEEDS = {
    "kitchen": ["Bread in a pot", "What to do with <too many> plums"],
    "garden": ["The first frost", "Seeds & cuttings", "A wall of beans"],
    "workshop": ["Sharpening a plane"],
}
ENTRY = "<entry><title>{title}</title><link href='/{name}/{number}'/></entry>"


class Feed(Resource):
    """A feed that counts how often it is fetched."""

    def __init__(self, name: str, hits: Counter[str]) -> None:
        super().__init__()
        self._name = name
        self._hits = hits

    def render_GET(self, request: Request) -> bytes:
        """Return the feed as Atom."""
        self._hits[self._name] += 1
        request.setHeader("Content-Type", "application/atom+xml")
        entries = "".join(
            ENTRY.format(title=escape(title), name=self._name, number=number)
            for number, title in enumerate(FEEDS[self._name], 1)
        )
        return (
            f"<feed xmlns='http://www.w3.org/2005/Atom'><title>{self._name}</title>{entries}</feed>".encode()
        )


class Hits(Resource):
    """How often each feed was fetched, as JSON."""

    def __init__(self, hits: Counter[str]) -> None:
        super().__init__()
        self._hits = hits

    def render_GET(self, _request: Request) -> bytes:
        """Return the counts by name, in one line."""
        return json.dumps(self._hits).encode() + b"\n"


async def main(reactor: Any, port: str) -> None:
    """Serve until interrupted."""
    hits: Counter[str] = Counter()
    root = Resource()
    root.putChild(b"hits", Hits(hits))
    for name in FEEDS:
        root.putChild(f"{name}.atom".encode(), Feed(name, hits))
    endpoint = TCP4ServerEndpoint(reactor, int(port), interface="127.0.0.1")
    listening = await endpoint.listen(Site(root))
    print(f"feeds on http://127.0.0.1:{listening.getHost().port}", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(main, sys.argv[1:])
