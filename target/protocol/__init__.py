"""The protocol core: maps a request frame to a response. No I/O, clock or threads."""
