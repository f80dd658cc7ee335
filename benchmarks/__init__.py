"""Benchmarks of the job server and Debian's gearmand, and of libraries: ``python -m benchmarks --help``."""
