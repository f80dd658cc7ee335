"""Measures the job server beside Debian's gearmand, and our libraries: ``python -m benchmarks --help``."""
