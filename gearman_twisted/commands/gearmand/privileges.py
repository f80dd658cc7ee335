"""Who the process is, and how much it may have open."""

from __future__ import annotations

import os
import pwd
import resource

from gearman_twisted.errors import ConfigError


def find_user(name: str) -> pwd.struct_passwd:
    """Return the user that a process of root can become.

    Raises:
        ConfigError: there is no such user, or the process is not root's.
    """
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"there is no user {name!r}; create it, or name another one with -u") from None
    if os.geteuid() != 0:
        raise ConfigError(f"only root can become the user {name!r}; leave -u away, or start it as root")
    return user


def become_user(user: pwd.struct_passwd) -> None:
    """Become a user, with its group and no other, for good.

    Raises:
        OSError: the system does not allow it.
    """
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)


def limit_descriptors(count: int) -> None:
    """Set how many files and connections the process may have open.

    Raises:
        ConfigError: it is more than this user may set.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = most if most == resource.RLIM_INFINITY else max(most, count)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, most))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"-f {count} is more open files than this user may have; give less, or start it as root"
        ) from error
