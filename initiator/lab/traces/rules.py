"""The rules by which a trace is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from initiator.lab.kernel.journal import Fault

if TYPE_CHECKING:
    from collections.abc import Container


@dataclass(frozen=True, slots=True)
class TraceRule:
    """A rule of a trace.

    Args:
        name: short name, for example ``freed-twice``.
        title: what happened where it is broken.
        fault: the outcome that it stands for (K117).
        number: the K rule that gives the reason.
        needs: groups of events; without one of each group it is not judged.
    """

    name: str
    title: str
    fault: Fault
    number: str
    needs: tuple[tuple[str, ...], ...]

    def missing(self, events: Container[str]) -> tuple[str, ...]:
        """Return the first group of which a trace has no event; empty if none."""
        return next(
            (
                group
                for group in self.needs
                if not any(name in events for name in group)
            ),
            (),
        )


_MODIFICATIONS: Final = (
    "page_ref_mod",
    "page_ref_mod_and_test",
    "page_ref_mod_and_return",
    "page_ref_mod_unless",
    "page_count",
)
_FREES: Final = ("mm_page_free", "mm_page_free_batched")

FREED_TWICE: Final = TraceRule(
    "freed-twice",
    "pages were freed that are already free",
    Fault.DOUBLE_FREE,
    "K112",
    (_FREES, ("page_ref_set", "pages.bt")),
)
PUT_TO_ZERO: Final = TraceRule(
    "put-to-zero",
    "the count fell to 0 without the owner's free",
    Fault.PREMATURE_FREE,
    "K75",
    (("page_ref_mod_and_test", "page_ref_mod_and_return", "pages.bt"),),
)
FREED_IN_IO: Final = TraceRule(
    "freed-in-io",
    "a page was freed between queueing and completion of its bio",
    Fault.PREMATURE_FREE,
    "K70",
    (("bio_page",), _FREES),
)
OUTLIVES_IO: Final = TraceRule(
    "outlives-io",
    "the count at completion is above that at queueing",
    Fault.LEAK,
    "K76",
    (("bio_page",), ("block_rq_complete", "block_bio_complete"), _MODIFICATIONS),
)
BELOW_ZERO: Final = TraceRule(
    "below-zero",
    "the count fell below 0",
    Fault.UNDERFLOW,
    "K112",
    (_MODIFICATIONS,),
)
GET_FROM_ZERO: Final = TraceRule(
    "get-from-zero",
    "the count was raised from 0 without an allocation",
    Fault.BAD_PAGE,
    "K119",
    (_MODIFICATIONS,),
)
COUNTED_TAIL: Final = TraceRule(
    "counted-tail",
    "a block was freed while another page of it has a count or an allocation",
    Fault.BAD_PAGE,
    "K84",
    (_MODIFICATIONS, _FREES),
)

RULES: Final = (
    FREED_TWICE,
    PUT_TO_ZERO,
    FREED_IN_IO,
    OUTLIVES_IO,
    BELOW_ZERO,
    GET_FROM_ZERO,
    COUNTED_TAIL,
)
"""Worst outcome first."""
BY_NAME: Final = {rule.name: rule for rule in RULES}
