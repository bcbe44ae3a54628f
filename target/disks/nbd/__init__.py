"""Disks that are exports of NBD servers."""
