"""The legend of a timeline: each color and shape that occurs in it."""

from __future__ import annotations

from typing import Final

_SIGN: Final = 'text-anchor="middle" x="8" y="12.5"'
_BANG: Final = f'<text class="bang" {_SIGN}>!</text>'
_SHAPES: Final = (
    ("get", '<path class="get" d="M8 2L14 13H2Z"/>', "get_page, page_ref_inc"),
    (
        "put",
        '<path class="put" d="M8 14L2 3H14Z"/>',
        "put_page, page_ref_dec, free_pages",
    ),
    ("dot", '<circle class="dot" cx="8" cy="8" r="5"/>', "other event"),
    ("sent", '<circle class="sent" cx="8" cy="8" r="5"/>', "transmission by the NIC"),
    (
        "fault",
        f'<circle class="fault" cx="8" cy="8" r="7"/>{_BANG}',
        "violation of a rule",
    ),
    ("count", '<path class="count" d="M1 12H8V4H15"/>', "page count"),
    (
        "count tail",
        '<path class="count tail" d="M1 12H8V4H15"/>',
        "count of the head page",
    ),
    (
        "tip",
        '<path class="arrow" d="M8 1V10"/><path class="tip" d="M4 9h8l-4 6Z"/>',
        "made from, or sent",
    ),
    ("fatal", '<path class="fatal" d="M8 0V16"/>', "first and worst violation"),
)
"""Class, shape and meaning."""
_AREAS: Final = (
    ("band o-own", "memory of the owner"),
    ("band o-slab", "memory of slab"),
    ("band o-aoe", "memory of the AoE driver"),
    ("band o-other", "memory of a new owner"),
    ("free unused", "on the free list"),
    ("free lost", "on the free list and still in use"),
    ("life bio", "bio"),
    ("life skb", "skb"),
    ("life clone", "clone"),
    ("column broken", "step with a violation"),
)
_BYTES: Final = (
    ("disk right", "✓", "submitted bytes are sent"),
    ("disk wrong", "✗", "other bytes are sent"),
)
_ACTORS: Final = (
    ("allocator", "by an allocator"),
    ("aoe", "by the AoE driver"),
    ("network", "by the network"),
)


def key(pictures: str) -> str:
    """Return the legend of what occurs in the pictures."""
    area = '<rect class="{}" x="1" y="1" width="14" height="14" rx="3"/>'
    known = (
        *_SHAPES,
        *((style, area.format(style), meaning) for style, meaning in _AREAS),
        *(
            (style, f'{area.format(style)}<text class="sign" {_SIGN}>{sign}</text>', by)
            for style, sign, by in _BYTES
        ),
        *(
            (f"action {actor}", f'<text class="action {actor}" y="12">abc</text>', by)
            for actor, by in _ACTORS
        ),
    )
    # A script marks the selected step.
    selected = ("", area.format("column on"), "selected step")
    lines = (
        f'<span><svg width="{24 if style.startswith("action") else 16}" height="16">'
        f"{shape}</svg> {meaning}</span>"
        for style, shape, meaning in (*known, selected)
        if not style or f'class="{style}"' in pictures
    )
    return f'<div class="key">{"".join(lines)}</div>'
