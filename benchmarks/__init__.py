"""Measures the job server beside Debian's gearmand: ``python -m benchmarks --help``."""
