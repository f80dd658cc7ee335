"""Web server: a page that starts a job and shows its progress while it runs, by server-sent events.

python page.py SERVER PORT
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.task import react
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from twisted.web.static import Data

from gearman_twisted import GearmanClient
from gearman_twisted.errors import GearmanError

PAGE = Path(__file__).with_name("page.html")


class Events(Resource):
    """The events of a job: ``GET /events?job=ID&steps=NUMBER``.

    The id is the unique of the job. So a browser that connects again, as it does by itself, or another one
    that asks for the same id, joins the job that runs.
    """

    isLeaf = True

    def __init__(self, client: GearmanClient) -> None:
        super().__init__()
        self._client = client

    def render_GET(self, request: Request) -> bytes | int:
        """Send ``status`` events with ``[done, of]``, then one ``result`` or ``failure`` with a text."""
        job, steps = (request.args.get(name, [b""])[0] for name in (b"job", b"steps"))
        if not re.fullmatch(rb"[\w-]{1,64}", job) or not re.fullmatch(rb"[1-9]\d{0,3}", steps):
            request.setResponseCode(400)
            return b"wants job, up to 64 letters, digits, - or _, and steps, 1 to 9999\n"
        request.setHeader("Content-Type", "text/event-stream")
        request.setHeader("Cache-Control", "no-store")
        Deferred.fromCoroutine(self._send_events(request, job, steps))
        return NOT_DONE_YET

    async def _send_events(self, request: Request, job: bytes, steps: bytes) -> None:
        def send(event: str, data: object) -> None:
            request.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())

        running = self._client.submit(
            "steps", steps, unique=job, retry=True, on_status=lambda *status: send("status", status)
        )
        # The browser has disconnected; a running job continues.
        request.notifyFinish().addErrback(lambda _: running.cancel())
        try:
            send("result", (await running).decode())
        except CancelledError:
            return
        except GearmanError as error:
            send("failure", str(error))
        request.finish()


async def main(reactor: Any, server: str, port: str) -> None:
    """Serve until interrupted."""
    root = Resource()
    root.putChild(b"", Data(PAGE.read_bytes(), "text/html; charset=utf-8"))
    root.putChild(b"events", Events(GearmanClient(server, reactor=reactor)))
    endpoint = TCP4ServerEndpoint(reactor, int(port), interface="127.0.0.1")
    listening = await endpoint.listen(Site(root))
    print(f"open http://127.0.0.1:{listening.getHost().port}/", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(main, sys.argv[1:])
