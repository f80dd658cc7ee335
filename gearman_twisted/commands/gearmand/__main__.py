"""The command ``gearmand``: our job server with the options and the behaviour of the C++ one.

Whatever keeps it from starting is one line on standard error and exit status 1.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gearman_twisted.commands.gearmand.options import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the words behind its name; those of the process if None.

    Returns:
        The exit status.
    """
    options = parse(sys.argv[1:] if argv is None else argv, os.environ)

    # Slow to load, and not needed where the options make no sense.
    from twisted.internet.error import CannotListenError

    from gearman_twisted.commands.gearmand.server import Gearmand, complain
    from gearman_twisted.commands.process import become_daemon, reopen_standard_streams
    from gearman_twisted.errors import GearmanError
    from gearman_twisted.server.listening import why_cannot_listen

    reopen_standard_streams()
    for note in options.loud_notes:
        complain(note)
    # Before there is a reactor, which would not survive it.
    ready = become_daemon(keeps_stdin=False) if options.daemon else lambda: None
    try:
        Gearmand(options, ready).run()
        return 0
    except CannotListenError as error:
        # DIFFERS: gearmand tries again for 22 seconds, and says nothing meanwhile.
        which = "-L, -p or --http-port" if options.protocols else "-L or -p"
        complain(f"{why_cannot_listen(error)}; choose another place with {which}")
    except GearmanError as error:
        complain(str(error))
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return 1


if __name__ == "__main__":
    sys.exit(main())
