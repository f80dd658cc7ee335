"""What this package adds to ``twistd``: two commands, and the kinds of job stores.

Strings only: ``twistd --help`` imports this module, so nothing heavy may come with it.
"""

from twisted.application.service import ServiceMaker

from gearman_twisted.store.plugin import StoreEntry

gearman = ServiceMaker(
    "gearman",
    "gearman_twisted.commands.twistd.server",
    "A Gearman job server, durable by default.",
    "gearman",
)

gearman_worker = ServiceMaker(
    "gearman-worker",
    "gearman_twisted.commands.twistd.worker",
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
    factory="gearman_twisted.store.sql.sqlite:open_sqlite",
)

memory_store = StoreEntry(
    scheme="memory",
    summary="Nowhere: background jobs are lost when the server ends.",
    argument_help="memory: takes nothing after the colon.",
    factory="gearman_twisted.store.memory:open_memory",
)

postgresql_store = StoreEntry(
    scheme="postgresql",
    summary="A database of PostgreSQL; goes on after a restart or a fail-over of the database.",
    argument_help=(
        "postgresql://USER@HOST:PORT/DATABASE, such as postgresql://gearman@db.example/gearman. Several\n"
        "hosts, with commas between them, are tried in their order until one takes writes. Options, after a\n"
        "question mark and with & between them: password_file=PATH, password_env=VARIABLE, host=DIRECTORY\n"
        "for a Unix socket, sslmode=, sslrootcert=, sslcert= and sslkey= as in PostgreSQL's own URLs,\n"
        "connect_timeout=SECONDS (5), timeout=SECONDS for a statement (20), sync=interval=SECONDS."
    ),
    factory="gearman_twisted.store.sql.postgres:open_postgres",
    needs="gearman-twisted[postgres]",
)

postgres_store = StoreEntry(
    scheme="postgres",
    summary="The same as postgresql:.",
    argument_help="postgres://USER@HOST:PORT/DATABASE",
    factory="gearman_twisted.store.sql.postgres:open_postgres",
    needs="gearman-twisted[postgres]",
)

mysql_store = StoreEntry(
    scheme="mysql",
    summary="A database of MariaDB or MySQL; goes on after a restart of the database.",
    argument_help=(
        "mysql://USER@HOST:PORT/DATABASE, such as mysql://gearman@db.example/gearman. Options, after a\n"
        "question mark and with & between them: password_file=PATH, password_env=VARIABLE,\n"
        "unix_socket=PATH, sslmode=disable, require, verify-ca or verify-full, sslrootcert=, sslcert=,\n"
        "sslkey=, connect_timeout=SECONDS (5), timeout=SECONDS for a statement (20), sync=interval=SECONDS."
    ),
    factory="gearman_twisted.store.sql.mysql:open_mysql",
    needs="gearman-twisted[mysql]",
)

mariadb_store = StoreEntry(
    scheme="mariadb",
    summary="The same as mysql:.",
    argument_help="mariadb://USER@HOST:PORT/DATABASE",
    factory="gearman_twisted.store.sql.mysql:open_mysql",
    needs="gearman-twisted[mysql]",
)

redis_store = StoreEntry(
    scheme="redis",
    summary="A Redis server that keeps an append-only file; goes on after a restart or a fail-over of Redis.",
    argument_help=(
        "redis://USER@HOST:PORT/NUMBER, such as redis://redis.example/0. Redis needs appendonly yes,\n"
        "appendfsync always and maxmemory-policy noeviction; for sync=interval=SECONDS, everysec will do,\n"
        "and for durable=no anything, at the risk of losing jobs. Other options, after a question\n"
        "mark and with & between them: prefix=TEXT for the names of the keys (gearman), password_file=PATH,\n"
        "password_env=VARIABLE, unix_socket=PATH, tls=yes, sslrootcert=PATH, sslcert=PATH, sslkey=PATH,\n"
        "connect_timeout=SECONDS (5), timeout=SECONDS for an answer (20)."
    ),
    factory="gearman_twisted.store.redis.store:open_redis",
    needs="gearman-twisted[redis]",
)
