"""A process and its host: starting in the background, signals, capabilities."""
