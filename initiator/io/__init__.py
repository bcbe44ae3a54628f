"""Runs the driver over real links: the event loop, the fast path, the tags."""
