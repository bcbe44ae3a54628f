"""An attached disk for programs that know no AoE."""
