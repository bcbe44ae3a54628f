"""A conformance suite for AoE targets; the checks themselves do no I/O."""
