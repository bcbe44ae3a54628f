"""A breadth-first search over all interleavings of steps for a policy violation."""
