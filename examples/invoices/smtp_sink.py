"""A test mail server: accepts all mail, and saves attachments as files in a directory.

python smtp_sink.py PORT DIRECTORY
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from email import message_from_bytes
from email.policy import default
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session


class Sink:
    """The handler of aiosmtpd."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Write the attachments of a mail; print a line for each."""
        assert isinstance(envelope.content, bytes)
        mail = message_from_bytes(envelope.content, policy=default)
        for part in mail.iter_attachments():
            # Only the last part of the name: a mail must not choose the directory.
            name = Path(part.get_filename("unnamed")).name
            content = part.get_content()
            (self._directory / name).write_bytes(content)
            print(f"to {mail['To']}: {name}, {len(content)} bytes", flush=True)
        return "250 OK"


async def main(port: str, directory: str) -> None:
    """Serve until interrupted."""
    sink = Sink(Path(directory))
    Path(directory).mkdir(exist_ok=True)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(sink, hostname="localhost"), "127.0.0.1", int(port))
    host, number = server.sockets[0].getsockname()
    print(f"takes mail on {host}:{number}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(*sys.argv[1:]))
