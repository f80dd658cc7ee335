"""``twistd gearman-worker``: its settings, the worker that they describe, and its processes."""
