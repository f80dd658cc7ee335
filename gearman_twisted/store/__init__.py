"""Find the kinds of job stores that are installed, and open one.

A kind of store is an ``IJobStoreFactory`` in a ``twisted.plugins`` module, of this package or another one;
``store.plugin.StoreEntry`` makes one from strings.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger
from twisted.plugin import getPlugins
from zope.interface.exceptions import Invalid
from zope.interface.verify import verifyObject

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.store.contract import IJobStore, IJobStoreFactory, StoredJob

__all__ = ["IJobStore", "IJobStoreFactory", "StoredJob", "installed_stores", "open_store"]

_log = Logger()


def installed_stores() -> list[IJobStoreFactory]:
    """Return the factories of all kinds of stores that are installed, in the order of their schemes.

    A broken plugin is logged and left out: another package must not take the server down.
    """
    return sorted(filter(_is_sound, getPlugins(IJobStoreFactory)), key=lambda factory: factory.scheme)


def open_store(url: str, reactor: IReactorFromThreads) -> IJobStore:
    """Return the store that a URL names; nothing is connected to or created yet.

    Args:
        url: the scheme of a kind of store, a colon, and what that kind defines.
        reactor: the reactor that the store will use.

    Raises:
        StoreConfigError: no such kind is installed, or the URL is invalid.
    """
    scheme, colon, _ = url.partition(":")
    factories = installed_stores()
    for factory in factories:
        if colon and factory.scheme == scheme:
            return factory.open_store(url, reactor)
    # Only the scheme is quoted: the rest may contain a password.
    raise StoreConfigError(
        f"there is no job store for {scheme + colon!r}: a store is written SCHEME:WHERE, and the schemes "
        f"installed are {', '.join(factory.scheme for factory in factories)}; --help-store lists them"
    )


def _is_sound(factory: IJobStoreFactory) -> bool:
    try:
        verifyObject(IJobStoreFactory, factory)
    except Invalid as error:
        _log.error("ignoring a broken job store plugin: {error}", error=str(error))
        return False
    return isinstance(factory.scheme, str)
