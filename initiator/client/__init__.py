"""One AoE command after another, without a driver."""
