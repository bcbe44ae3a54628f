"""The reference target: the protocol in scapy packets, short, and easy to change."""
