"""A conformance suite for any AoE target: rules as tables, no socket in them."""
