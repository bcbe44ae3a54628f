"""Raw Ethernet links, network interfaces and network namespaces (Linux)."""
