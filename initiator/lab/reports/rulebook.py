"""The rules that a journal names, in one line each, and what a card's kind means."""

from __future__ import annotations

from typing import Final

RULES: Final = {
    "K52": "A frame that is sent again has the same skb and a new tag.",
    "K55": "A device that fails ends its bios; clones in flight are not called back.",
    "K58": "An answer is matched by its tag; one that nothing waits for is reported.",
    "K63": "A bio ends once, when the last of its frames is done.",
    "K70": "bio_add_page takes no reference: the owner keeps the memory until the end.",
    "K72": "A frame borrows the pages of its payload: no reference.",
    "K73": "A clone shares head and fragments of the skb: no reference either.",
    "K74": "A clone that shares its data is freed without touching a page.",
    "K75": "Linearising takes and drops a reference on each page: 0, 1, 0 frees it.",
    "K76": "A private head's fragments hold references until transmission completes.",
    "K77": "2.6.21 linearises when it queues; later kernels when the queue is left.",
    "K78": "bi_end_io runs when the answer comes, whatever clones are still about.",
    "K80": "A stale clone sends what its page holds by then, to the same sectors.",
    "K81": "A clone of a failed device may still be sent, after the error.",
    "K82": "The driver keeps its own skb and scrubs it; it puts no data page.",
    "K83": "Every sniffer gets a clone of its own, which borrows the same pages.",
    "K84": "In a block that is not compound only the first page has a count.",
    "K87": "Frozen slab pages have count 0; get and put on them warn and do nothing.",
    "K89": "A slab page whose count falls to 0 is reported: Bad page state.",
    "K97": "AoE raises each page's count when a bio comes, lowers it before the end.",
    "K99": "A plain decrement to 0 frees nothing.",
    "K100": "Slab holds a reference per object and reuses none that others refer to.",
    "K101": "Filesystems hold references until bi_end_io; slab pages are not for bios.",
    "K102": "A page goes out as it is only if it is no slab page and has a count.",
    "K108": "A page that is handed out must have nobody who refers to it.",
    "K110": "Freeing a block frees all its pages; the first page's count decides.",
    "K111": "What kfree gets back is handed out again at once.",
    "K112": "A page whose count falls to 0 is freed, whoever still uses it.",
    "K115": "bi_end_io runs exactly once for each bio.",
    "K116": "In the end every page has an owner or is free, and none is free twice.",
    "K119": "With CONFIG_DEBUG_VM, get_page on count 0 is a BUG.",
    "K120": "Counts protect memory, not content: the card sends what it finds.",
}
"""By number in kernel-path.md."""

NICS: Final = {
    "SG": "scatter-gather: the card reads the pages when it sends",
    "NOSG": "no scatter-gather: the network copies each frame into one piece",
    "COW": "headers change on the way: each clone gets a head of its own",
}

FLAGS: Final = {
    "WARN": "the kernel warned",
    "copied": "the payload was copied",
    "EIO": "the bio ended with an error",
    "ghost-write": "the disk was written after the bio had failed",
    "dup-write": "the disk was written twice",
    "unexpected-rsp": "an answer came that nothing waited for",
}

OUTCOMES: Final = {
    "BUG": "the machine stops",
    "double-free": "memory is on the free list twice, two owners may get it",
    "premature-free": "memory is free while its owner uses it",
    "wrong-bytes": "the disk gets bytes that nobody submitted",
    "leak": "memory is lost until the next boot",
    "underflow": "a count falls below zero",
    "bad-page": "the kernel finds a page in a bad state",
    "ok": "nothing is wrong",
}
"""Worst first (K117)."""


def rule_text(rule: str) -> str:
    """Say what a rule says, or nothing for an unknown one."""
    return RULES.get(rule, "")
