"""A disk for programs that know no AoE: as a file, a block device, a mount."""
