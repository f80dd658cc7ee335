"""A connection to a Redis server: pipelined commands, errors in the operator's words, persistence settings.

Nothing here knows of jobs. A ``RedisConnection`` never reconnects by itself, since its owner must first check
what it would be connected to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreUnavailable
from gearman_twisted.store.url import StoreUrl

OPTIONS = frozenset(
    {
        *("prefix", "sync", "durable", "password_file", "password_env", "unix_socket"),
        *("tls", "sslrootcert", "sslcert", "sslkey", "connect_timeout", "timeout"),
    }
)
CONNECT_TIMEOUT = 5.0
TIMEOUT = 20.0

# The longest value that Redis takes by default.
MAX_VALUE_BYTES = 512 * 1024 * 1024

Command = tuple[Any, ...]

_SSL_FILES = {"sslrootcert": "ssl_ca_certs", "sslcert": "ssl_certfile", "sslkey": "ssl_keyfile"}

# The driver removes these codes from the text of an error.
_CODES: tuple[tuple[type[Exception], str], ...] = (
    (redis.exceptions.BusyLoadingError, "LOADING"),
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.AuthenticationError, "NOAUTH"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.AskError, "MOVED"),  # a MovedError is one of these
    (redis.exceptions.ClusterCrossSlotError, "CROSSSLOT"),
)
_CLUSTER = "it is a Redis Cluster, which cannot hold the jobs of a server; name a server of its own"

# What Redis says, what that means for us, and what the operator can do.
_ADVICE: tuple[tuple[str, type[StoreError], str], ...] = (
    ("LOADING", StoreUnavailable, "it can be used when it has read its files"),
    ("OOM", StoreUnavailable, "raise its maxmemory, or make room in it"),
    ("MISCONF", StoreUnavailable, "it cannot write to its disk; see its log"),
    ("READONLY", StoreUnavailable, "it is a replica; name the primary"),
    ("MASTERDOWN", StoreUnavailable, "it is a replica; name the primary"),
    ("NOREPLICAS", StoreUnavailable, "it misses its replicas"),
    ("CLUSTERDOWN", StoreConfigError, _CLUSTER),
    ("MOVED", StoreConfigError, _CLUSTER),
    ("CROSSSLOT", StoreConfigError, _CLUSTER),
    ("BUSY", StoreUnavailable, "a script of someone else's runs there"),
    ("NOPERM", StoreConfigError, "let the user do that, with ACL SETUSER"),
    ("NOAUTH", StoreConfigError, "give its password with ?password_file=PATH or ?password_env=VARIABLE"),
    ("invalid username-password", StoreConfigError, "see the user in the URL, and ?password_file="),
    ("DB index", StoreConfigError, "name a database that it has, such as 0"),
    ("WRONGTYPE", StoreConfigError, "keys of that name hold something else; give another ?prefix="),
    ("unknown command", StoreConfigError, "it must not be renamed or forbidden"),
    ("max number of clients", StoreUnavailable, "raise its maxclients"),
    ("CERTIFICATE_VERIFY_FAILED", StoreConfigError, "see ?sslrootcert= and the host in the URL"),
)
_log = Logger()


@attrs.frozen
class RedisAddress:
    """Where a Redis server is, and how to connect to it.

    Attributes:
        name: the server for the operator, without secrets.
        timeout: seconds that an answer may take.
    """

    name: str
    timeout: float
    _url: StoreUrl
    _kind: Any
    _options: dict[str, Any]
    # The last one, for when its file cannot be read any more.
    _password: list[str | None]

    @classmethod
    def of(cls, url: StoreUrl) -> RedisAddress:
        """Return the address that a URL names.

        Raises:
            StoreConfigError: the URL is invalid, or its password cannot be read.
        """
        server = url.address()
        database = server.database or "0"
        if not (database.isascii() and database.isdecimal()):
            raise StoreConfigError(f"{url.scheme}: takes the number of a database, not {database!r}")
        if len(server.hosts) > 1:
            raise StoreConfigError(f"{url.scheme}: takes one host")
        timeout = url.seconds("timeout", TIMEOUT)
        options: dict[str, Any] = {
            "db": int(database),
            "username": server.user or None,
            "socket_timeout": timeout,
            "socket_connect_timeout": url.seconds("connect_timeout", CONNECT_TIMEOUT),
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        ((host, port),) = server.hosts
        path = url.options.get("unix_socket")
        uses_tls = url.is_on("tls", default=False)
        files = {_SSL_FILES[name]: file for name, file in url.options.items() if name in _SSL_FILES}
        if files and not uses_tls:
            raise StoreConfigError(f"{url.scheme}: takes sslrootcert, sslcert and sslkey with tls=yes")
        for file in files.values():
            if not os.access(file, os.R_OK):
                raise StoreConfigError(f"{url.scheme}: cannot read {file}, which it needs for TLS")
        if path is not None:
            if host or port or uses_tls:
                raise StoreConfigError(f"{url.scheme}: takes a host or unix_socket=PATH, not both, nor TLS")
            kind: Any = redis.UnixDomainSocketConnection
            options["path"] = path
            name = path
        else:
            kind = redis.SSLConnection if uses_tls else redis.Connection
            options |= {"host": host or "localhost", "port": port or 6379, "socket_keepalive": True}
            if uses_tls:
                options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True, **files}
            name = f"[{host}]" if ":" in host else host or "localhost"
            name = f"{name}:{port or 6379}"
        return cls(f"Redis at {name}/{database}", timeout, url, kind, options, [url.password()])

    def connect(self) -> Any:
        """Return a new connection of the driver's.

        Raises:
            redis.RedisError: the server cannot be reached.
        """
        try:
            self._password[0] = self._url.password()
        except StoreConfigError as error:
            # The server may have read it as root, and be another user since.
            _log.warn("{reason}; using the last password", reason=str(error))
        connection = self._kind(**self._options, password=self._password[0])
        connection.connect()
        return connection


class RedisConnection:
    """One connection to a Redis server.

    Args:
        address: the server's.

    Attributes:
        has_worked: set once the server was found fit for use. What it refuses from then on it may accept
            later, so it counts as unavailable.

    Raises:
        StoreConfigError: the server refuses us.
        StoreUnavailable: the server cannot be reached.
    """

    def __init__(self, address: RedisAddress) -> None:
        self.has_worked = False
        self._address = address
        self._connection: Any = None
        try:
            self._connection = address.connect()
        except (redis.RedisError, OSError) as error:
            raise self._explain(error) from error

    @property
    def is_open(self) -> bool:
        """Whether it can still be used: it was neither lost nor closed."""
        return self._connection is not None

    def ask(self, *commands: Command) -> list[Any]:
        """Send commands in one pipeline, and wait for the answers.

        Args:
            commands: each a tuple of its words, which are str, bytes or int.

        Returns:
            The answers, in the order of the commands.

        Raises:
            StoreUnavailable: the connection was lost, and is closed now.
            StoreError: a command was refused.
        """
        answers = self.ask_each(*commands)
        for answer in _flat(answers):
            if isinstance(answer, Exception):
                raise self._explain(answer) from answer
        return answers

    def ask_each(self, *commands: Command) -> list[Any]:
        """Do the same, but return an exception as the answer to a command that was refused.

        Raises:
            StoreUnavailable: the connection was lost, and is closed now.
        """
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(f"{self._address.name}: the connection is closed")
        answers: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except redis.ResponseError as error:  # noqa: PERF203 - the answers that follow are read too
                    answers.append(error)
        # The driver raises ValueError for answers that it cannot parse.
        except (redis.RedisError, OSError, ValueError) as error:
            self.close()
            raise self._explain(error) from error
        return answers

    def close(self) -> None:
        """Close the connection; never fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _explain(self, error: Exception) -> StoreError:
        """Return the error for the operator: where, what Redis said, and what to do."""
        said = " ".join(str(error).split())
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "")
        name = self._address.name
        if isinstance(error, redis.TimeoutError | TimeoutError):
            return StoreUnavailable(f"{name}: no answer within {self._address.timeout:g} seconds")
        for word, kind, advice in _ADVICE:
            if word == code or word in said:
                if self.has_worked and kind is StoreConfigError:
                    kind = StoreUnavailable  # noqa: PLW2901
                return kind(f"{name}: {said}; {advice}")
        lost = (redis.ConnectionError, OSError, ValueError)
        return (StoreUnavailable if isinstance(error, lost) else StoreError)(f"{name}: {said}")


@attrs.frozen
class Persistence:
    """What a Redis server does to keep its data.

    Attributes:
        unknown: the settings that it does not tell.
        missing: the settings that have to be changed, each with its value.
        is_replica: whether it is a replica of another server.
        is_cluster: whether it is part of a Redis Cluster.
        is_new: whether it still writes its first append-only file.
        max_value_bytes: the longest value that it takes.
    """

    unknown: list[str]
    missing: list[str]
    is_replica: bool
    is_cluster: bool
    is_new: bool
    max_value_bytes: int


def persistence_of(connection: RedisConnection, *, may_lag: bool) -> Persistence:
    """Ask a Redis server what it does to keep its data.

    Args:
        connection: the server to ask.
        may_lag: whether syncing to the disk once a second is enough.

    Raises:
        StoreUnavailable: the connection was lost.
    """
    wanted: dict[str, Sequence[str]] = {
        "appendonly": ("yes",),
        "appendfsync": ("always", "everysec") if may_lag else ("always",),
        # With yes, nothing is synced while the append-only file is rewritten.
        "no-appendfsync-on-rewrite": ("no",),
        "maxmemory-policy": ("noeviction",),
    }
    names = [*wanted, "proto-max-bulk-len"]
    answers = connection.ask_each(*[("CONFIG", "GET", name) for name in names], ("INFO",))
    info = dict(_info(answers.pop()))
    has: dict[str, str] = {}
    # If CONFIG is forbidden, INFO has some of it.
    if "aof_enabled" in info:
        has["appendonly"] = "yes" if info["aof_enabled"] == "1" else "no"
    if "maxmemory_policy" in info:
        has["maxmemory-policy"] = info["maxmemory_policy"]
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, list) and len(answer) == 2:
            has[name] = answer[1].decode("utf-8", "replace")
    bulk = has.get("proto-max-bulk-len", "")
    return Persistence(
        [name for name in wanted if name not in has],
        [f"{name} {values[0]}" for name, values in wanted.items() if has.get(name, values[0]) not in values],
        info.get("role") == "slave",
        info.get("cluster_enabled") == "1",
        info.get("aof_rewrite_in_progress") == "1" and info.get("aof_last_rewrite_time_sec") == "-1",
        int(bulk) if bulk.isdecimal() else MAX_VALUE_BYTES,
    )


def _info(answer: object) -> Iterator[tuple[str, str]]:
    if isinstance(answer, bytes):
        for line in answer.decode("utf-8", "replace").splitlines():
            name, colon, value = line.partition(":")
            if colon:
                yield name, value


def _flat(answers: Sequence[Any]) -> Iterator[Any]:
    """Return answers, and those inside the answer to an EXEC."""
    for answer in answers:
        if type(answer) is list:
            # Most items of long lists are data; an exception is the answer to a command of a transaction.
            yield from (inner for inner in answer if type(inner) is not bytes)
        else:
            yield answer
