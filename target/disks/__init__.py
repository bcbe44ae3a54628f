"""Where the bytes of an export live."""
