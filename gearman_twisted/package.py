"""The version of the package, and names that are imported when they are first used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__version__ = "0.1.0"


def install_command(requirement: str) -> str:
    """Return the command that installs a requirement into the environment that this process runs in.

    Of an extra of ours it names the packages: ours is on no index, and may come from a checkout or a wheel.

    Args:
        requirement: such as ``gearman-twisted[tls]``.
    """
    import re
    import shlex
    import sys
    from importlib.metadata import PackageNotFoundError, requires

    name, _, extra = requirement.rstrip("]").partition("[")
    packages = [requirement]
    if name == "gearman-twisted":
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            return f"pip install '.[{extra}]' in a checkout"
        is_of_extra = re.compile(rf"extra == ['\"]{extra}['\"]").search
        packages = [line.partition(";")[0].strip() for line in lines if is_of_extra(line)]
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Make the ``__getattr__`` of a package whose public names live in its modules.

    The protocol and the engine can be imported without Twisted this way, and asyncio programs never load it.

    Args:
        package: the name of the package.
        homes: by name, the module that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get
