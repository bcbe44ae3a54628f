"""The checks, one table per module."""
