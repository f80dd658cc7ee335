"""A kind of job store, described in strings.

``twistd --help`` imports every plugin module, so an entry must cost nothing: the module that it names
is imported when a store is opened.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

import attrs
from twisted.internet.interfaces import IReactorFromThreads
from twisted.plugin import IPlugin
from zope.interface import implementer

from gearman_twisted.errors import StoreConfigError
from gearman_twisted.package import install_command
from gearman_twisted.store.contract import IJobStore, IJobStoreFactory


@implementer(IPlugin, IJobStoreFactory)
@attrs.frozen
class StoreEntry:
    """Makes stores of one kind; put one into a module of ``twisted.plugins`` to add a kind.

    Attributes:
        scheme: the start of its URLs, before the colon.
        summary: what it is, in a line.
        argument_help: how its URLs are written, in a few lines.
        factory: ``module:callable``; the callable takes the URL and the reactor, and returns the store.
        needs: the requirement, for pip, that has its drivers; may be empty.
    """

    scheme: str
    summary: str
    argument_help: str
    factory: str
    needs: str = ""

    def open_store(self, url: str, reactor: IReactorFromThreads) -> IJobStore:
        """Return a store; nothing is connected to or created yet.

        Raises:
            StoreConfigError: the URL is invalid, or a driver is missing.
        """
        module, _, name = self.factory.partition(":")
        try:
            make = cast(
                "Callable[[str, IReactorFromThreads], IJobStore]", getattr(import_module(module), name)
            )
        except ImportError as error:
            raise StoreConfigError(
                f"the job store {self.scheme}: needs a package that is not installed ({error}); "
                + (install_command(self.needs) if self.needs else "--help-store says which")
            ) from error
        return make(url, reactor)
