"""Worker: fetches Atom feeds, many at a time, as this is only I/O.

A job is a URL; its result is a list of titles in JSON.
"""

from __future__ import annotations

import json

from defusedxml import ElementTree
from twisted.internet import reactor
from twisted.web.client import Agent, HTTPConnectionPool, readBody

from gearman_twisted import Job
from gearman_twisted.errors import JobException

ATOM = "{http://www.w3.org/2005/Atom}"
TIMEOUT = 30.0

# twistd has installed its reactor before it imports this.
agent = Agent(reactor, connectTimeout=10.0, pool=HTTPConnectionPool(reactor))


async def fetch(job: Job) -> bytes:
    """Fetch a feed and return the titles of its entries."""
    response = await agent.request(b"GET", job.workload).addTimeout(TIMEOUT, reactor)
    body = await readBody(response).addTimeout(TIMEOUT, reactor)
    if response.code != 200:
        raise JobException(f"the site answered {response.code}".encode())
    feed = ElementTree.fromstring(body)
    titles = [entry.findtext(f"{ATOM}title") for entry in feed.iter(f"{ATOM}entry")]
    return json.dumps(titles).encode()
