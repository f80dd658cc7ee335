"""Parse hosts and ports as users write them."""

from __future__ import annotations

from gearman_twisted.errors import ConfigError
from gearman_twisted.wire.constants import DEFAULT_PORT


def split_host_port(text: str, default_port: int = DEFAULT_PORT, *, lowest_port: int = 1) -> tuple[str, int]:
    """Return the host and the port of ``host``, ``host:port``, ``[IPv6]`` or ``[IPv6]:port``.

    Args:
        text: what the user wrote.
        default_port: used if there is none in the text.
        lowest_port: 0 if that may stand for any free port.

    Raises:
        ConfigError: it is none of these; the message quotes it and says what is wrong.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or not is_ipv6(host):
            raise ConfigError(f"{text!r} is not an address: write [IPv6 address] or [IPv6 address]:port")
        colon, port = rest[:1], rest[1:]
    elif text.count(":") > 1:
        raise ConfigError(f"{text!r} is not an address: write an IPv6 address in brackets, as in [::1]:4730")
    else:
        host, colon, port = text.partition(":")
    if not host or any(character.isspace() for character in text):
        raise ConfigError(f"{text!r} is not an address: write host or host:port")
    return host, port_number(port, text, lowest_port) if colon else default_port


def port_number(port: str, text: str, lowest: int = 1) -> int:
    """Return a port as a number.

    Args:
        port: its digits.
        text: the whole address, for the error.
        lowest: the lowest port allowed.

    Raises:
        ConfigError: it is not a port.
    """
    # isdecimal alone takes digits of other scripts, and int() takes blanks, signs and underscores.
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and lowest <= int(port) <= 65535):
        raise ConfigError(
            f"{text!r} is not an address: the port is a number from {lowest} to 65535, not {port!r}"
        )
    return int(port)


def is_ipv6(host: str) -> bool:
    """Return whether a host is an IPv6 address, without brackets."""
    if ":" not in host:
        return False
    import ipaddress

    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
