"""Captures: pcapng files whose frames carry a description."""
