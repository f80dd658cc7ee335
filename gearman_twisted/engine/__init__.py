"""The rules of jobs, for the server, the client and the worker: pure, with time as an argument."""
