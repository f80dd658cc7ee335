"""The command ``gearman``: submits jobs, or works with a command.

Nothing that is slow to load is imported before the options are known to make sense.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence

from gearman_twisted.commands.arguments import GearmanOptions, parse

# Seconds; as gearmand's own.
_PING_TIMEOUT = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

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
    from gearman_twisted.errors import GearmanError

    reopen_standard_streams()
    if options.ping:
        return _ping(options)
    # Before there is a reactor, which would not survive it.
    ready = become_daemon() if options.daemon else lambda: None
    try:
        with pid_file(options.pidfile):
            run = _worker(options) if options.is_worker else _client(options)
            ready()
            return run()
    except GearmanError as error:
        complain(str(error))
    except BrokenPipeError:
        die_of_broken_pipe()
    except OSError as error:
        # The pid file, standard input or standard output.
        complain(f"{error.filename or 'input or output'}: {error.strerror}")
    return 1


def _ping(options: GearmanOptions) -> int:
    from gearman_twisted.commands.connection import ServerConnection
    from gearman_twisted.commands.process import complain
    from gearman_twisted.commands.servers import server_addresses, tls_files
    from gearman_twisted.errors import GearmanError

    timeout = options.timeout_ms / 1000 if options.timeout_ms > 0 else _PING_TIMEOUT
    addresses = server_addresses(options.host, options.port, os.environ)
    try:
        with ServerConnection(addresses, tls_files(options.tls, os.environ), timeout) as server:
            server.ping()
    except GearmanError as error:
        complain(f"ping failed: {error}")
        return 1
    if options.verbose:
        print("ping OK")
    return 0


def _client(options: GearmanOptions) -> Callable[[], int]:
    from gearman_twisted.commands.gearman.client import ClientCommand
    from gearman_twisted.commands.servers import server_addresses, tls_files

    addresses = server_addresses(options.host, options.port, os.environ)
    files = tls_files(options.tls, os.environ)
    streams = {"stdin": sys.stdin.buffer, "stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    command = ClientCommand(options, addresses, files, **streams)
    # Nothing has to be put in order: what dies by a signal says so in its status.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return command.run


def _worker(options: GearmanOptions) -> Callable[[], int]:
    from gearman_twisted.commands.process import leave_out_openssl
    from gearman_twisted.commands.servers import client_tls, server_addresses

    tls = client_tls(options.tls, os.environ)
    addresses = server_addresses(options.host, options.port, os.environ)
    if tls is None and not any(address.lower().startswith(("ssl:", "tls:")) for address in addresses):
        leave_out_openssl()

    from twisted.internet import reactor

    from gearman_twisted.commands.gearman.worker import WorkerCommand
    from gearman_twisted.runtime.clocks import use_steady_clock
    from gearman_twisted.runtime.malloc import give_memory_back

    use_steady_clock(reactor)
    give_memory_back()
    return WorkerCommand(reactor, options, addresses, tls, sys.stdout.buffer).run


if __name__ == "__main__":
    sys.exit(main())
