"""The command ``gearman``: submits jobs, or works with a command.

Nothing that is slow to load is imported before the options are known to make sense.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gearman_twisted.commands.arguments import GearmanOptions, parse

if TYPE_CHECKING:
    from gearman_twisted.runtime.tls import ClientTls


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: the words behind its name; those of the process if None.

    Returns:
        The exit status.
    """
    options = parse(sys.argv[1:] if argv is None else argv)

    from gearman_twisted.commands.process import (
        become_daemon,
        complain,
        die_of_broken_pipe,
        pid_file,
        reopen_standard_streams,
    )
    from gearman_twisted.commands.servers import client_tls
    from gearman_twisted.errors import GearmanError

    reopen_standard_streams()
    # Before there is a reactor, which would not survive it.
    ready = become_daemon() if options.daemon else lambda: None
    try:
        with pid_file(options.pidfile):
            tls = client_tls(options.tls, os.environ)
            ready()
            return _run(options, tls)
    except GearmanError as error:
        complain(str(error))
    except BrokenPipeError:
        die_of_broken_pipe()
    except OSError as error:
        # The pid file, standard input or standard output.
        complain(f"{error.filename or 'input or output'}: {error.strerror}")
    return 1


def _run(options: GearmanOptions, tls: ClientTls | None) -> int:
    from twisted.internet import reactor

    from gearman_twisted.commands.servers import server_addresses

    addresses = server_addresses(options.host, options.port, os.environ)
    if options.is_worker:
        from gearman_twisted.commands.gearman.worker import WorkerCommand

        return WorkerCommand(reactor, options, addresses, tls, sys.stdout.buffer).run()

    from gearman_twisted.commands.gearman.client import ClientCommand
    from gearman_twisted.commands.process import run_and_stop

    streams = {"stdin": sys.stdin.buffer, "stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    client = ClientCommand(reactor, options, addresses, tls, **streams)
    return run_and_stop(lambda _: client.run())


if __name__ == "__main__":
    sys.exit(main())
