"""Jobs in a SQL database on a server: what PostgreSQL and MySQL have in common.

A job server holds a lock in the database for as long as its connection lasts. When that is lost, the next
call reconnects, and takes the lock again before anything is read or written.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import attrs
from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store.holder import Holder
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


@attrs.frozen
class LockSession:
    """The session that has the lock.

    Attributes:
        number: of the session in the database.
        server: the job server that it belongs to; None if not known.
        label: its name for the operator.
        is_from_here: whether it comes from the address that our own session comes from.
        end: the statement with which an operator ends it.
    """

    number: int
    server: Holder | None
    label: str
    is_from_here: bool
    end: str

    def __str__(self) -> str:
        return (
            f"{self.label}; stop that server, or give this one a database of its own; "
            f"if it is gone for good, {self.end}"
        )


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
    def holder(self, session: Any) -> LockSession | None:
        """Return who has the lock; None if it is free. Leave no transaction open."""

    @abc.abstractmethod
    def end_session(self, session: Any, holder: LockSession) -> None:
        """End the session that has the lock; leave no transaction open."""

    @abc.abstractmethod
    def end_former(self, session: Any) -> None:
        """End this store's last connection that had the lock, if the server still considers it alive."""

    def check(self) -> None:
        session = self.open_session()
        try:
            self._wait_for_lock(session, lambda: self.holder(session) is None)
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
                self._wait_for_lock(session, lambda: self.try_lock(session))
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
        return str(Holder.me())[:63]

    def _wait_for_lock(self, session: Any, is_free: Callable[[], bool]) -> None:
        """Wait until the lock is free.

        A session keeps it when its server was killed and a commit waits, for a standby or for room on the
        disk: the database does not look at the connection then. It is ended if the server is certainly dead.

        Raises:
            StoreInUse: another server has it.
        """
        if _becomes_true(is_free):
            return
        holder = self.holder(session)
        if holder and holder.is_from_here and holder.server and holder.server.is_alive() is False:
            with suppress(*self.errors):
                self.end_session(session, holder)
                _log.warn(
                    "{store}: ended session {number}, which had the lock; its server, {server}, is dead",
                    store=self.description,
                    number=holder.number,
                    server=holder.server.describe(),
                )
            if _becomes_true(is_free):
                return
            holder = self.holder(session)
        raise StoreInUse(f"{self.description} is in use by {holder or 'another server'}")


def _becomes_true(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LOCK_WAIT
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOCK_POLL)
    return True
