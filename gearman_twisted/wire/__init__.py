"""Bytes and packets: pure functions and classes that know nothing of jobs, sockets or clocks."""
