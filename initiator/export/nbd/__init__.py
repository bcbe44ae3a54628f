"""An attached disk as an NBD server."""
