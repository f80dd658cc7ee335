"""The command ``gearmand``."""
