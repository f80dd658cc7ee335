"""The commands: ``gearman``, ``gearadmin``, ``gearmand``, ``gearman-store``, and those of ``twistd``."""
