"""Jobs in a SQL database on a server: what PostgreSQL and MySQL have in common.

A job server holds a lock in the database for as long as its connection lasts. When that is lost, the next
call reconnects, and takes the lock again before anything is read or written.
"""

from __future__ import annotations

import abc
import os
import socket
import time
from contextlib import suppress
from typing import Any

from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store.sql.tables import Dialect, read_version
from gearman_twisted.store.url import StoreUrl

CONNECT_TIMEOUT = 5.0
TIMEOUT = 20.0

# The database may not have noticed yet that the last holder of the lock was killed.
LOCK_WAIT = 2.0
_LOCK_POLL = 0.05

OPTIONS = frozenset(
    {
        *("sync", "password_file", "password_env", "connect_timeout", "timeout"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey"),
    }
)
_log = Logger()


class ServerDialect(Dialect):
    """A database on a server, and the lock that says which job server uses it.

    Args:
        url: where the database is.
        kind: its name for the operator.

    Raises:
        StoreConfigError: the URL names no database, or an option is invalid.
    """

    reconnects = True

    def __init__(self, url: StoreUrl, kind: str) -> None:
        self.address = url.address()
        if not self.address.database:
            raise StoreConfigError(
                f"{url.scheme}: needs the name of a database, such as {url.scheme}://USER@HOST/gearman"
            )
        self.connect_timeout = url.seconds("connect_timeout", CONNECT_TIMEOUT)
        self.timeout = url.seconds("timeout", TIMEOUT)
        self._url = url
        self._password = url.password()
        hosts = ", ".join(
            f"[{host}]:{port}" if port and ":" in host else f"{host}:{port}" if port else host
            for host, port in self.address.hosts
            if host
        )
        self.description = f"{kind} database {self.address.database} on {hosts or 'this machine'}" + (
            f" as {self.address.user}" if self.address.user else ""
        )

    @abc.abstractmethod
    def open_session(self) -> Any:
        """Connect, and make the settings that keep jobs safe.

        Raises:
            StoreError: the database cannot be reached, or must not be used as it is; nothing is left open.
        """

    @abc.abstractmethod
    def try_lock(self, session: Any) -> bool:
        """Take the lock if it is free; leave no transaction open."""

    @abc.abstractmethod
    def release_lock(self, session: Any) -> None:
        """Release the lock."""

    @abc.abstractmethod
    def holder(self, session: Any) -> str | None:
        """Return who has the lock and what to do about it, to follow "is in use by"; None if it is free.

        Leave no transaction open.
        """

    @abc.abstractmethod
    def end_former(self, session: Any) -> None:
        """End this store's last connection that had the lock, if the server still considers it alive."""

    def check(self) -> None:
        session = self.open_session()
        try:
            deadline = time.monotonic() + LOCK_WAIT
            while (holder := self.holder(session)) and time.monotonic() < deadline:
                time.sleep(_LOCK_POLL)
            if holder:
                raise self._in_use(holder)
            read_version(self, session)
            self.check_tables(session)
        except self.errors as error:
            raise self.explain(error) from error
        finally:
            with suppress(*self.errors):
                session.close()

    def open(self) -> Any:
        session = self.open_session()
        try:
            if not self.try_lock(session):
                self.end_former(session)
                deadline = time.monotonic() + LOCK_WAIT
                while not self.try_lock(session):
                    if time.monotonic() > deadline:
                        raise self._in_use(self.holder(session) or "another server")
                    time.sleep(_LOCK_POLL)
        except BaseException as error:
            with suppress(*self.errors):
                session.close()
            if isinstance(error, self.errors):
                raise self.explain(error) from error
            raise
        return session

    def close(self, session: Any) -> None:
        # The server may take a while to see that the connection ended, so the lock is released explicitly. A
        # connection that is lost has lost the lock already.
        if session is not None:
            with suppress(*self.errors):
                self.release_lock(session)
            with suppress(*self.errors):
                session.close()

    def explain(self, error: Exception) -> StoreError:
        kind, said, advice = self.judge(error)
        text = f"{self.description}: {' '.join(said.split())}" + (f"; {advice}" if advice else "")
        if kind is StoreConfigError and self.is_open:
            # It worked before, so it may work again.
            kind = StoreUnavailable
        return kind(text)

    @abc.abstractmethod
    def judge(self, error: BaseException) -> tuple[type[StoreError], str, str]:
        """Return what an error means, what the database said, and what the operator can do, if anything."""

    def password(self) -> str | None:
        """Return the current password, since a file may have a new one; the last one if it cannot be read."""
        try:
            self._password = self._url.password()
        except StoreConfigError as error:
            # The server may have read it as root, and be another user since.
            _log.warn("{reason}; using the last password", reason=str(error))
        return self._password

    def refuse(self, text: str) -> StoreError:
        """Return the error for a database with unsafe or insufficient settings."""
        return (StoreUnavailable if self.is_open else StoreConfigError)(f"{self.description}: {text}")

    @property
    def own_name(self) -> str:
        """The name of this server, for others that want the same database."""
        # Not kept: the process is another one since it went to the background.
        return f"gearman-twisted, process {os.getpid()} on {socket.gethostname()}"[:63]

    def _in_use(self, holder: str) -> StoreInUse:
        return StoreInUse(f"{self.description} is in use by {holder}")
