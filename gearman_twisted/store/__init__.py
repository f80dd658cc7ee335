"""Finding the kinds of job stores that are installed, ours and other people's.

A kind of store is an ``IJobStoreFactory`` in a ``twisted.plugins`` module; ``store.plugin.StoreEntry``
makes one from strings.
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
    """Finds every kind of store that is installed.

    A plugin that is broken is logged and left out: someone else's package must not take the server down.

    Returns:
        The factories, in the order of their schemes.
    """
    return sorted(filter(_is_sound, getPlugins(IJobStoreFactory)), key=lambda factory: factory.scheme)


def open_store(url: str, reactor: IReactorFromThreads) -> IJobStore:
    """Makes the store that a URL names; nothing is connected to or created yet.

    Args:
        url: the scheme of a kind of store, a colon, and what that kind makes of the rest.
        reactor: the reactor that the store will live in.

    Raises:
        StoreConfigError: no such kind is installed, or it cannot make sense of the URL.
    """
    scheme, colon, _ = url.partition(":")
    factories = installed_stores()
    for factory in factories:
        if colon and factory.scheme == scheme:
            return factory.open_store(url, reactor)
    # Only the scheme is quoted, as what follows may hold a password.
    raise StoreConfigError(
        f"there is no job store for {scheme + colon!r}: a store is written SCHEME:WHERE, and the schemes "
        f"installed are {', '.join(factory.scheme for factory in factories)}; --help-store lists them"
    )


def _is_sound(factory: IJobStoreFactory) -> bool:
    try:
        verifyObject(IJobStoreFactory, factory)
    except Invalid as error:
        _log.error("A plugin that offers a job store is left out: {error}", error=str(error))
        return False
    return isinstance(factory.scheme, str)
