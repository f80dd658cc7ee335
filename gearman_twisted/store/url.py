"""The URLs of job stores: ``SCHEME:PLACE?OPTION=VALUE&OPTION=VALUE``.

They have no passwords, since everyone on a machine can read the command lines of its processes.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from urllib.parse import unquote

import attrs

from gearman_twisted.errors import StoreConfigError

_PASSWORD_OPTIONS = ("password_file", "password_env")
_HOW_TO_GIVE_PASSWORD = "write ?password_file=PATH or ?password_env=VARIABLE"


@attrs.frozen
class DatabaseAddress:
    """Where a database is.

    Attributes:
        user: empty if the URL names none.
        hosts: each with its port, None if the URL names none; a host may be empty.
        database: what follows the slash, may be empty.
    """

    user: str
    hosts: tuple[tuple[str, int | None], ...]
    database: str


@attrs.frozen
class StoreUrl:
    """The parts of a store's URL.

    Attributes:
        scheme: the part before the first colon.
        place: the part between that and a question mark, unchanged.
        options: the rest, each name once, percent escapes decoded.
    """

    scheme: str
    place: str
    options: dict[str, str]

    @classmethod
    def parse(cls, url: str, known: Collection[str]) -> StoreUrl:
        """Parse a URL.

        Args:
            url: the whole URL.
            known: the names of all options.

        Raises:
            StoreConfigError: an option is unknown, given twice, or without a value.
        """
        scheme, _, rest = url.partition(":")
        place, _, text = rest.partition("?")
        options: dict[str, str] = {}
        for part in text.split("&") if text else ():
            name, equals, value = part.partition("=")
            if name not in known:
                raise StoreConfigError(
                    f"{scheme}: has no option {name!r}; it takes {', '.join(sorted(known)) or 'none'}"
                )
            if name in options or not equals:
                raise StoreConfigError(f"{scheme}: takes {name}=VALUE once")
            options[name] = unquote(value)
        return cls(scheme, place, options)

    def sync_interval(self) -> float:
        """Return the seconds of the option ``sync``, 0 for ``always``, which is the default.

        Raises:
            StoreConfigError: it is neither ``always`` nor ``interval=SECONDS``.
        """
        value = self.options.get("sync", "always")
        kind, _, seconds = value.partition("=")
        if value == "always":
            return 0.0
        try:
            interval = float(seconds)
        except ValueError:
            interval = 0.0
        if kind != "interval" or not 0.001 <= interval <= 3600:
            raise StoreConfigError(
                f"{self.scheme}: takes sync=always or sync=interval=SECONDS, with 0.001 to 3600 seconds, "
                f"not sync={value}"
            )
        return interval

    def is_on(self, name: str, *, default: bool) -> bool:
        """Return the value of an option that takes ``yes`` or ``no``.

        Raises:
            StoreConfigError: it has another value.
        """
        value = self.options.get(name)
        if value not in {None, "yes", "no"}:
            raise StoreConfigError(f"{self.scheme}: takes {name}=yes or {name}=no, not {name}={value}")
        return default if value is None else value == "yes"

    def seconds(self, name: str, default: float) -> float:
        """Return the value of an option that takes seconds.

        Raises:
            StoreConfigError: it is not a number from 1 to 3600.
        """
        text = self.options.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 1 <= value <= 3600:
            raise StoreConfigError(f"{self.scheme}: takes {name}=SECONDS, 1 to 3600, not {name}={text}")
        return value

    def password(self) -> str | None:
        """Read the password from a file or the environment; None if the URL names neither.

        Raises:
            StoreConfigError: the URL names both, or the password cannot be read.
        """
        if all(name in self.options for name in _PASSWORD_OPTIONS):
            raise StoreConfigError(f"{self.scheme}: takes password_file or password_env, not both")
        path = self.options.get("password_file")
        if path is not None:
            try:
                return Path(path).read_text("utf-8").rstrip("\r\n")
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
                raise StoreConfigError(f"cannot read the password file {path}: {reason}") from error
        name = self.options.get("password_env")
        if name is None:
            return None
        if name not in os.environ:
            raise StoreConfigError(f"the environment has no {name}, which has to hold the store's password")
        return os.environ[name]

    def address(self) -> DatabaseAddress:
        """Parse the place as ``//USER@HOST:PORT,HOST:PORT/DATABASE``, each part optional, IPv6 in brackets.

        Raises:
            StoreConfigError: it is something else, or contains a password.
        """
        if not self.place.startswith("//"):
            raise StoreConfigError(f"{self.scheme}: is followed by //USER@HOST/NAME, not by {self.place!r}")
        authority, _, database = self.place[2:].partition("/")
        user, _, hosts = authority.rpartition("@")
        if ":" in user:
            # The text is not quoted: it would end up in a log.
            raise StoreConfigError(
                f"a password in a URL can be read by everyone on the machine; {_HOW_TO_GIVE_PASSWORD}"
            )
        return DatabaseAddress(unquote(user), tuple(map(self._host, hosts.split(","))), unquote(database))

    def _host(self, text: str) -> tuple[str, int | None]:
        host, colon, port = text.rpartition(":")
        if not colon or "]" in port:
            return _without_brackets(text), None
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise StoreConfigError(f"{self.scheme}: takes a port from 1 to 65535, not {port!r}")
        return _without_brackets(host), int(port)


def _without_brackets(host: str) -> str:
    return unquote(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
