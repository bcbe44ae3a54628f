"""The protocol core: a request frame becomes a reply. No I/O, clock or threads."""
