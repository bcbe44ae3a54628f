"""The AoE initiator: bio to frames and back, as the Linux driver does it."""
