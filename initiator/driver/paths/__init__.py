"""Which paths to a device are used: those that have proved to serve its disk."""
