"""The server: the event loop, ports, the fast path and the inventory of exports."""
