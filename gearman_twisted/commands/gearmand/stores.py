"""The stores that ``gearmand -q`` names, as stores of ours: which URL the options of the original stand for.

Passwords never stand in a URL. One that an option gives goes into the environment of this process, which
no other process sees.
"""

from __future__ import annotations

import getpass
import os
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import attrs

from gearman_twisted.errors import ConfigError, GearmanError
from gearman_twisted.package import install_command

PASSWORD_VARIABLE = "GEARMAND_STORE_PASSWORD"

# Where libmysql looks for the server's socket, as systems have it.
_MYSQL_SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")
_SSL = ("sslmode", "sslrootcert", "sslcert", "sslkey")
# What our store sets itself, or does not need.
_NEEDLESS = ("application_name", "fallback_application_name", "client_encoding", "target_session_attrs")


@attrs.frozen
class QueueStore:
    """What the options of the original stand for.

    Attributes:
        url: that of our store.
        password: the value of ``PASSWORD_VARIABLE`` when the store is opened, if any.
        source: where the original's jobs are, for ``gearman-store import``; empty where that is not known.
        notes: what has no effect, a sentence each.
    """

    url: str
    password: str | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    def give_password(self) -> None:
        """Put the password where the store looks for it."""
        if self.password is not None:
            os.environ[PASSWORD_VARIABLE] = self.password

    def left_behind(self) -> str | None:
        """Return what to tell the operator if the original has left jobs beside the store; may block.

        None if there are none, or if that cannot be found out.
        """
        if not self.source:
            return None
        from gearman_twisted.commands.store.queue import Found
        from gearman_twisted.commands.store.sources import open_source

        try:
            source = open_source(self.source, ())
            try:
                source.open()
                # Redis cannot count what it has; of a table only the whole can be read.
                is_redis = self.source.startswith("redis:")
                has_jobs = (
                    any(isinstance(one, Found) for one in source.read()) if is_redis else source.count() > 0
                )
            finally:
                source.close()
        except GearmanError:
            return None
        if not has_jobs:
            return None
        command = f"gearman-store import {shlex.quote(self.source)} {shlex.quote(self.url)}"
        return (
            f"{source.description} has jobs of the original gearmand, which this server does not run: "
            f"bring them over with {command}, or drop them if that was done"
        )


def queue_store(queue: str, options: Namespace, environment: Mapping[str, str]) -> QueueStore:
    """Return the store of ``-q``.

    Args:
        queue: the name of an existing one, in lower case.
        options: those of the original.
        environment: that of the process.

    Raises:
        ConfigError: an option is missing, or is invalid for our store.
    """
    if queue == "libsqlite3":
        if not options.libsqlite3_db:
            raise ConfigError("-q libsqlite3 needs a file: --libsqlite3-db=PATH")
        return QueueStore(f"sqlite:{options.libsqlite3_db}")
    if queue == "mysql":
        return _mysql(options, environment)
    if queue == "postgres":
        return _postgres(options, environment)
    if queue == "redis":
        place = _place("", [(options.redis_server or "127.0.0.1", options.redis_port or 0)], "0")
        words = {"prefix": options.redis_prefix} if options.redis_prefix else {}
        return _store(f"redis:{place}", words, password=options.redis_password)
    return QueueStore("memory:")


def _mysql(options: Namespace, environment: Mapping[str, str]) -> QueueStore:
    if not options.mysql_db:
        raise ConfigError("-q mysql needs a database: --mysql-db=NAME")
    words: dict[str, str] = {}
    host: str = options.mysql_host or "localhost"
    port: int = options.mysql_port or 0
    if host == "localhost":
        # COMPAT: to libmysql this host means the socket, where MySQL lets users in whom it knows by it.
        named = environment.get("MYSQL_UNIX_PORT")
        found = [path for path in ((named,) if named else _MYSQL_SOCKETS) if Path(path).exists()]
        if found:
            host, port, words["unix_socket"] = "", 0, found[0]
    place = _place(options.mysql_user or "", [(host, port)], options.mysql_db)
    return _store(f"mysql:{place}", words, password=options.mysql_password, table=options.mysql_table)


def _postgres(options: Namespace, environment: Mapping[str, str]) -> QueueStore:
    given = _conninfo(options.libpq_conninfo or "")
    words = {name: given.pop(name) for name in _SSL if name in given}
    user = given.pop("user", "") or environment.get("PGUSER", "") or getpass.getuser()
    database = given.pop("dbname", "") or environment.get("PGDATABASE", "") or user
    hosts, ports = given.pop("host", "").split(","), given.pop("port", "").split(",")
    if len(ports) not in {1, len(hosts)} or not all(port.isdecimal() for port in ports if port):
        raise ConfigError("--libpq-conninfo takes one port, or as many as hosts")
    numbers = [int(port or 0) for port in ports]
    if hosts[0].startswith("/"):
        words["host"], hosts = ",".join(hosts), [""]
    places = [(host, numbers[index % len(numbers)]) for index, host in enumerate(hosts)]
    password = given.pop("password", None)
    timeout = given.pop("connect_timeout", "0")
    ours = {"connect_timeout": timeout} if timeout.isdecimal() and int(timeout) else {}
    notes = [name for name in given if name in _NEEDLESS or name.startswith(("keepalives", "tcp_"))]
    for name in given:
        if name not in notes:
            raise ConfigError(
                f"--libpq-conninfo: {name} is not taken; give it to libpq by its variable in the environment"
            )
    base = f"postgresql:{_place(user, places, database)}"
    store = _store(base, words, password=password, table=options.libpq_table, ours=ours)
    return attrs.evolve(
        store, notes=tuple(f"{name} in --libpq-conninfo has no effect: the store sets it" for name in notes)
    )


def _conninfo(text: str) -> dict[str, str]:
    try:
        import psycopg.conninfo
    except ImportError as error:
        raise ConfigError(
            f"-q postgres needs a package that is not installed ({error}): "
            f"{install_command('gearman-twisted[postgres]')}"
        ) from error
    try:
        return {name: str(value) for name, value in psycopg.conninfo.conninfo_to_dict(text).items()}
    except psycopg.Error as error:
        # What libpq says may repeat the text, and so a password.
        raise ConfigError(
            "--libpq-conninfo is not understood: it takes what libpq does, such as "
            "'host=HOST user=USER dbname=NAME'"
        ) from error


def _store(
    base: str,
    words: Mapping[str, str],
    *,
    password: str | None,
    table: str | None = None,
    ours: Mapping[str, str] | None = None,
) -> QueueStore:
    """Make the store of a URL; ``ours`` are options that the original's queue does not have."""
    if password:
        words = {**words, "password_env": PASSWORD_VARIABLE}
    source = {**words, "table": table} if table else words
    return QueueStore(_url(base, {**words, **(ours or {})}), password or None, _url(base, source))


def _place(user: str, hosts: Sequence[tuple[str, int]], database: str) -> str:
    where = ",".join(
        (f"[{host}]" if ":" in host else quote(host, safe="")) + (f":{port}" if port else "")
        for host, port in hosts
    )
    return f"//{quote(user, safe='')}{'@' if user else ''}{where}/{quote(database, safe='')}"


def _url(base: str, words: Mapping[str, str]) -> str:
    options = "&".join(f"{name}={quote(value, safe='/')}" for name, value in words.items())
    return f"{base}{'?' if options else ''}{options}"
