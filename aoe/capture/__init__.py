"""Capture files: pcapng with a description of each frame as its comment."""
