"""What clients and workers need of an event loop: connections, timers, TLS, processes."""
