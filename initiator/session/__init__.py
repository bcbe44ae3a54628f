"""The session of ``aoe scapy``: scapy with our layers, and helpers to ask a target."""
