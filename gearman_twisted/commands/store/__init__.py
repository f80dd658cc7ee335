"""The command ``gearman-store``."""
