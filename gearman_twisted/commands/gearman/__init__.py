"""The command ``gearman``."""
