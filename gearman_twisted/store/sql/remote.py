"""Jobs in a SQL database on a server: what PostgreSQL and MySQL have in common.

A server holds a lock of the database's for as long as its connection lasts. When that is lost, the next
call makes another one, and takes the lock again before anything is read or written.
"""

from __future__ import annotations

import abc
import os
import socket
import time
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from twisted.logger import Logger

from gearman_twisted.errors import StoreConfigError, StoreError, StoreInUse, StoreUnavailable
from gearman_twisted.store.sql.tables import Dialect, look
from gearman_twisted.store.url import StoreUrl

CONNECT_TIMEOUT = 5.0
TIMEOUT = 20.0

# A server that was killed a moment ago may still hold the lock: the database notices soon.
LOCK_WAIT = 2.0
_LOCK_POLL = 0.05

OPTIONS = frozenset(
    {
        *("sync", "password_file", "password_env", "connect_timeout", "timeout"),
        *("sslmode", "sslrootcert", "sslcert", "sslkey"),
    }
)
_log = Logger()


class RemoteDialect(Dialect):
    """A database on a server, and the lock that says which job server has it.

    Attributes:
        driver: what SQLAlchemy calls the kind of database and the driver.
        engine_options: more arguments for ``create_engine``.
    """

    driver: str
    engine_options: dict[str, Any] = {}
    connects_anew = True

    def __init__(self, url: StoreUrl, kind: str) -> None:
        """Takes what every such URL has.

        Args:
            url: where the database is.
            kind: what the operator calls it.

        Raises:
            StoreConfigError: the URL names no database, or an option makes no sense.
        """
        self.server = url.server()
        if not self.server.database:
            raise StoreConfigError(
                f"{url.scheme}: needs the name of a database, such as {url.scheme}://USER@HOST/gearman"
            )
        self.connect_timeout = _seconds(url, "connect_timeout", CONNECT_TIMEOUT)
        self.timeout = _seconds(url, "timeout", TIMEOUT)
        self._url = url
        self._password = url.password()
        self._session: Any = None
        hosts = ", ".join(
            f"[{host}]:{port}" if port and ":" in host else f"{host}:{port}" if port else host
            for host, port in self.server.hosts
            if host
        )
        self.description = f"{kind} database {self.server.database} on {hosts or 'this machine'}" + (
            f" as {self.server.user}" if self.server.user else ""
        )

    @abc.abstractmethod
    def open_session(self) -> Any:
        """Connects, and makes the settings that keep jobs safe; the driver's connection.

        Raises:
            StoreError: the database must not be used as it is; nothing is left open.
        """

    @abc.abstractmethod
    def try_lock(self, session: Any) -> bool:
        """Takes the lock if it is free, in a transaction that has ended when this returns."""

    @abc.abstractmethod
    def release_lock(self, session: Any) -> None:
        """Gives the lock back."""

    @abc.abstractmethod
    def holder(self, session: Any) -> str | None:
        """Who has the lock and what to do about it, in words that follow "is in use by"; None if it is free.

        No transaction runs when this returns.
        """

    @abc.abstractmethod
    def end_former(self, session: Any) -> None:
        """Ends the last connection of this store that had the lock, if the server still thinks it alive."""

    def check(self) -> None:
        """Connects and looks; creates and changes nothing.

        Raises:
            StoreError: the database cannot be used, is not ours, or another server has it.
        """
        engine = self._make_engine(self.open_session)
        try:
            with engine.connect() as connection:
                session = connection.connection.driver_connection
                deadline = time.monotonic() + LOCK_WAIT
                while (holder := self.holder(session)) and time.monotonic() < deadline:
                    time.sleep(_LOCK_POLL)
                if holder:
                    raise self._in_use(holder)
                self._look(connection)
        except self._all_errors as error:
            raise self.explain(error) from error
        finally:
            engine.dispose()

    def look_closer(self, session: Any) -> None:
        """Looks for what else may stand in the way, before anything is created.

        Raises:
            StoreError: something does.
        """

    def connect(self) -> Engine:
        """Connects and takes the lock, now and whenever a connection was lost."""
        engine = self._make_engine(self._open_and_lock)
        try:
            with engine.connect() as connection:
                self._look(connection)
        except BaseException as error:
            self.disconnect(engine)
            if isinstance(error, self._all_errors):
                raise self.explain(error) from error
            raise
        return engine

    def disconnect(self, engine: Engine) -> None:
        """Gives the lock back at once, since the server may take a while to see that the connection ended."""
        if self._session is not None:
            # A connection that is lost has lost the lock already.
            with suppress(*self.errors):
                self.release_lock(self._session)
            self._session = None
        engine.dispose()

    def explain(self, error: Exception) -> StoreError:
        """The error for the operator: where, what the database said, and what to do."""
        reason = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        if isinstance(reason, StoreError):
            return reason
        kind, said, advice = self.judge(reason)
        text = f"{self.description}: {' '.join(said.split())}" + (f"; {advice}" if advice else "")
        if kind is StoreConfigError and self.is_open:
            # It worked before, so it may work again.
            kind = StoreUnavailable
        return kind(text)

    @abc.abstractmethod
    def judge(self, error: BaseException) -> tuple[type[StoreError], str, str]:
        """What an error means, what the database said, and what the operator can do, if anything."""

    def password(self) -> str | None:
        """The password as it is now, since a file may have a new one; what it was if it cannot be read."""
        try:
            self._password = self._url.password()
        except StoreConfigError as error:
            # The server may have read it as root, and be another user since.
            _log.warn("{reason}; going on with what it was", reason=str(error))
        return self._password

    def refuse(self, text: str) -> StoreError:
        """The error for a database whose settings do not do."""
        return (StoreUnavailable if self.is_open else StoreConfigError)(f"{self.description}: {text}")

    @property
    def own_name(self) -> str:
        """What other servers are told when they want the same database."""
        # The process is another one since it went to the background.
        return f"gearman-twisted, process {os.getpid()} on {socket.gethostname()}"[:63]

    @property
    def _all_errors(self) -> tuple[type[Exception], ...]:
        return (SQLAlchemyError, *self.errors)

    def _look(self, connection: Connection) -> None:
        look(connection, self.description)
        self.look_closer(connection.connection.driver_connection)

    def _make_engine(self, creator: Any) -> Engine:
        return create_engine(
            f"{self.driver}://", creator=creator, pool_size=1, max_overflow=0, **self.engine_options
        )

    def _open_and_lock(self) -> Any:
        session = self.open_session()
        try:
            if not self.try_lock(session):
                self.end_former(session)
                deadline = time.monotonic() + LOCK_WAIT
                while not self.try_lock(session):
                    if time.monotonic() > deadline:
                        raise self._in_use(self.holder(session) or "another server")
                    time.sleep(_LOCK_POLL)
        except BaseException:
            session.close()
            raise
        self._session = session
        return session

    def _in_use(self, holder: str) -> StoreInUse:
        return StoreInUse(f"{self.description} is in use by {holder}")


def _seconds(url: StoreUrl, name: str, default: float) -> float:
    text = url.options.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= 3600:
        raise StoreConfigError(f"{url.scheme}: takes {name}=SECONDS, 1 to 3600, not {name}={text}")
    return value
