"""Raw Ethernet and what the kernel says of interfaces: sockets and netlink only."""
