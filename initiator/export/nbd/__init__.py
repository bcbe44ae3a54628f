"""The NBD server that exports an attached disk."""
