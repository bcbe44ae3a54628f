"""Whether a FLUSH has covered what it had to."""
