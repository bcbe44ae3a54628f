"""Disks of NBD servers."""
