"""The commands ``twistd gearman`` and ``twistd gearman-worker``."""
