"""Models of block drivers over TCP: what they copy and what they refer to."""
