"""Run the driver over links: event loop, fast path, tags."""
