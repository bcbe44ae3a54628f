"""Exports of an attached disk: NBD, a FUSE file, a loop device, a mount."""
