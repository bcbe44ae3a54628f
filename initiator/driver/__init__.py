"""The AoE driver, after the Linux kernel's: no I/O, no clock."""
