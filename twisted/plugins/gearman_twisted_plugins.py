"""What this package adds to ``twistd``: two commands, and the kinds of job stores.

Strings only: ``twistd --help`` imports this module, so nothing heavy may come with it.
"""

from twisted.application.service import ServiceMaker

from gearman_twisted.store.plugin import StoreEntry

gearman = ServiceMaker(
    "gearman", "gearman_twisted.tap", "A Gearman job server, durable by default.", "gearman"
)

gearman_worker = ServiceMaker(
    "gearman-worker",
    "gearman_twisted.worker_tap",
    "Runs Python functions as a Gearman worker.",
    "gearman-worker",
)

sqlite_store = StoreEntry(
    scheme="sqlite",
    summary="A file of its own, in SQLite; safe against crashes and power cuts.",
    argument_help=(
        "sqlite:PATH, such as sqlite:/var/lib/gearman/gearman.db. The file is created if it is missing,\n"
        "its directory is not. A relative path starts at the working directory. Keep it on a local disk,\n"
        "and give every server a file of its own."
    ),
    factory="gearman_twisted.store.sqlite:open_sqlite",
)

memory_store = StoreEntry(
    scheme="memory",
    summary="Nowhere: background jobs are lost when the server ends.",
    argument_help="memory: takes nothing after the colon.",
    factory="gearman_twisted.store.memory:open_memory",
)
