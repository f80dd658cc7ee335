"""The URLs that job stores are named by: ``SCHEME:PLACE?OPTION=VALUE&OPTION=VALUE``.

Passwords never stand in them, as everyone on a machine can read the command lines of its processes.
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
    """A store's URL, taken apart.

    Attributes:
        scheme: what stands before the first colon.
        place: what stands between that and a question mark, as it stands there.
        options: what follows, each name once, percent escapes decoded.
    """

    scheme: str
    place: str
    options: dict[str, str]

    @classmethod
    def parse(cls, url: str, known: Collection[str]) -> StoreUrl:
        """Takes a URL apart.

        Args:
            url: the whole of it.
            known: the names of the options that make sense.

        Raises:
            StoreConfigError: an option is not known, is given twice, or has no value.
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
        """What the option ``sync`` asks for: 0 for ``always``, which is the default, else seconds.

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
        """What an option says that takes ``yes`` or ``no``.

        Raises:
            StoreConfigError: it says something else.
        """
        value = self.options.get(name)
        if value not in {None, "yes", "no"}:
            raise StoreConfigError(f"{self.scheme}: takes {name}=yes or {name}=no, not {name}={value}")
        return default if value is None else value == "yes"

    def seconds(self, name: str, default: float) -> float:
        """What an option says that takes seconds.

        Raises:
            StoreConfigError: it says something else, or less than 1 or more than 3600.
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
        """The password that a file or the environment holds; None where the URL names neither.

        Raises:
            StoreConfigError: it names both, or it is not to be had.
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
            raise StoreConfigError(f"the environment has no {name}, which shall hold the store's password")
        return os.environ[name]

    def address(self) -> DatabaseAddress:
        """The place as that of a server: ``//USER@HOST:PORT,HOST:PORT/DATABASE``, each part optional.

        An IPv6 address stands in brackets.

        Raises:
            StoreConfigError: it is none, or holds a password.
        """
        if not self.place.startswith("//"):
            raise StoreConfigError(f"{self.scheme}: is followed by //USER@HOST/NAME, not by {self.place!r}")
        authority, _, database = self.place[2:].partition("/")
        user, _, hosts = authority.rpartition("@")
        if ":" in user:
            # The text is not repeated here, as it would end up in a log.
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
