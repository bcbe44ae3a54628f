"""Meanings of the names in reports: NICs, annotations and outcomes."""

from __future__ import annotations

from typing import Final

NICS: Final = {
    "SG": "scatter-gather: the NIC reads the pages when it transmits",
    "NOSG": "no scatter-gather: the network linearizes each frame",
    "COW": "the header is modified on the way: each clone gets a private head",
}

FLAGS: Final = {
    "WARN": "the kernel warned",
    "copied": "the payload was copied",
    "EIO": "the bio ended with an error",
    "ghost-write": "the disk was written after the bio had failed",
    "dup-write": "the disk was written twice",
    "unexpected-rsp": "a response matched no frame",
}

OUTCOMES: Final = {
    "BUG": "the kernel stops at a BUG",
    "double-free": "memory is on the free list twice and may get two owners",
    "premature-free": "memory is freed while its owner uses it",
    "wrong-bytes": "the disk gets bytes that were not submitted",
    "leak": "memory is lost until the next boot",
    "underflow": "a page count falls below zero",
    "bad-page": "the kernel finds a page in a bad state",
    "ok": "no rule is broken",
}
"""Worst first (K117)."""
