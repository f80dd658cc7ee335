"""A connection to a Redis server: commands in pipelines, errors in the operator's words, what Redis keeps.

Nothing here knows of jobs. A ``Link`` never connects anew by itself, as whoever has it must first look at
what there is to connect to.
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

# What Redis takes as one value unless it is told otherwise.
MAX_VALUE_BYTES = 512 * 1024 * 1024

Command = tuple[Any, ...]

_SSL_FILES = {"sslrootcert": "ssl_ca_certs", "sslcert": "ssl_certfile", "sslkey": "ssl_keyfile"}

# The driver takes these codes off the text of an error.
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
class Place:
    """Where a Redis server is, and how it is reached.

    Attributes:
        name: what the operator calls it, without secrets.
        timeout: seconds that an answer may take.
    """

    name: str
    timeout: float
    _url: StoreUrl
    _kind: Any
    _options: dict[str, Any]
    # Kept for the time when it cannot be read any more.
    _password: list[str | None]

    @classmethod
    def of(cls, url: StoreUrl) -> Place:
        """The place that a URL names.

        Raises:
            StoreConfigError: it makes no sense, or its password is not to be had.
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
        """Makes a connection of the driver's.

        Raises:
            redis.RedisError: it cannot be made.
        """
        try:
            self._password[0] = self._url.password()
        except StoreConfigError as error:
            # The server may have read it as root, and be another user since.
            _log.warn("{reason}; going on with what it was", reason=str(error))
        connection = self._kind(**self._options, password=self._password[0])
        connection.connect()
        return connection


class Link:
    """One connection to a Redis server.

    Args:
        place: where that is.

    Attributes:
        has_worked: set once the server was found to be fit for use; what it refuses from then on it may take
            later, and so is unavailable.

    Raises:
        StoreConfigError: it refuses us.
        StoreUnavailable: it cannot be reached.
    """

    def __init__(self, place: Place) -> None:
        self.has_worked = False
        self._place = place
        self._connection: Any = None
        try:
            self._connection = place.connect()
        except (redis.RedisError, OSError) as error:
            raise self._explain(error) from error

    @property
    def is_open(self) -> bool:
        """Whether it can still be used: not after a connection was lost, or ``close``."""
        return self._connection is not None

    def ask(self, *commands: Command) -> list[Any]:
        """Sends commands at once, and waits for the answers.

        Args:
            commands: each a tuple of its words, which are str, bytes or int.

        Returns:
            The answers, in the order of the commands.

        Raises:
            StoreError: the connection was lost, after which the link is closed, or a command was refused.
        """
        answers = self.ask_each(*commands)
        for answer in _flat(answers):
            if isinstance(answer, Exception):
                raise self._explain(answer) from answer
        return answers

    def ask_each(self, *commands: Command) -> list[Any]:
        """The same, but for a command that was refused the answer is an exception.

        Raises:
            StoreUnavailable: the connection was lost, after which the link is closed.
        """
        connection = self._connection
        if connection is None:
            raise StoreUnavailable(f"{self._place.name}: the connection is closed")
        answers: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            for _ in commands:
                try:
                    answers.append(connection.read_response())
                except redis.ResponseError as error:  # noqa: PERF203 - the answers that follow are read too
                    answers.append(error)
        # Among the driver's own are a ValueError for what it cannot read.
        except (redis.RedisError, OSError, ValueError) as error:
            self.close()
            raise self._explain(error) from error
        return answers

    def close(self) -> None:
        """Ends the connection; never fails."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _explain(self, error: Exception) -> StoreError:
        """The error for the operator: where, what Redis said, and what to do."""
        said = " ".join(str(error).split())
        code = next((code for kind, code in _CODES if isinstance(error, kind)), "")
        name = self._place.name
        if isinstance(error, redis.TimeoutError | TimeoutError):
            return StoreUnavailable(f"{name}: no answer within {self._place.timeout:g} seconds")
        for word, kind, advice in _ADVICE:
            if word == code or word in said:
                if self.has_worked and kind is StoreConfigError:
                    kind = StoreUnavailable  # noqa: PLW2901
                return kind(f"{name}: {said}; {advice}")
        lost = (redis.ConnectionError, OSError, ValueError)
        return (StoreUnavailable if isinstance(error, lost) else StoreError)(f"{name}: {said}")


@attrs.frozen
class Keeping:
    """What Redis does about keeping what it is told.

    Attributes:
        unknown: what it would not say, in the names of its settings.
        missing: what it would have to be told, each a setting and its value.
        is_replica: whether it copies another server, which is then to be asked.
        is_cluster: whether it is part of a Redis Cluster.
        is_new: whether it still writes the first append-only file since it began to keep one.
        max_value_bytes: the longest value that it takes.
    """

    unknown: list[str]
    missing: list[str]
    is_replica: bool
    is_cluster: bool
    is_new: bool
    max_value_bytes: int


def keeping(link: Link, *, may_lag: bool) -> Keeping:
    """Asks Redis what it does about keeping what it is told.

    Args:
        link: where to ask.
        may_lag: whether it may bring that to the disk once a second rather than at once.

    Raises:
        StoreUnavailable: the connection was lost.
    """
    wanted: dict[str, Sequence[str]] = {
        "appendonly": ("yes",),
        "appendfsync": ("always", "everysec") if may_lag else ("always",),
        # With yes, nothing is brought to the disk for as long as the file is written anew.
        "no-appendfsync-on-rewrite": ("no",),
        "maxmemory-policy": ("noeviction",),
    }
    names = [*wanted, "proto-max-bulk-len"]
    answers = link.ask_each(*[("CONFIG", "GET", name) for name in names], ("INFO",))
    info = dict(_info(answers.pop()))
    has: dict[str, str] = {}
    # Where CONFIG is forbidden, INFO knows some of it.
    if "aof_enabled" in info:
        has["appendonly"] = "yes" if info["aof_enabled"] == "1" else "no"
    if "maxmemory_policy" in info:
        has["maxmemory-policy"] = info["maxmemory_policy"]
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, list) and len(answer) == 2:
            has[name] = answer[1].decode("utf-8", "replace")
    bulk = has.get("proto-max-bulk-len", "")
    return Keeping(
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
    """Answers, and those that stand in the answer to an EXEC."""
    for answer in answers:
        if type(answer) is list:
            # Long lists hold data: an exception stands there for a command of a transaction.
            yield from (inner for inner in answer if type(inner) is not bytes)
        else:
            yield answer
