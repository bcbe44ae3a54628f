"""The AoE target: serves disks over raw Ethernet."""
