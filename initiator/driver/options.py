"""How the driver behaves where the kernel's manners and a user's wishes differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection

    from aoe.address import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How the driver behaves.

    Args:
        tags: ``user`` sets bit 31, so that a kernel driver on this host leaves our
            answers alone (P11); ``kernel`` builds tags of counter and jiffies (K24).
        tag_base: 12 bits of every ``user`` tag. Each driver of a host needs its own,
            since all of them hear all answers: with None, ``Host`` finds a free one.
        hz: jiffies in a second, for ``kernel`` tags.
        timing: ``prompt`` or ``kernel``, see ``initiator.driver.timing``.
        deadsecs: seconds without an answer after which a device is down and its bios
            fail; 0 means never (K54).
        maxout: most frames outstanding at one target (K15).
        report_errors: an AoE error ends its bio at once. The kernel logs it and sends
            the frame again until ``deadsecs`` (K62).
        send_flush: FLUSH bios become FLUSH CACHE commands, and FUA is heeded. The
            kernel reports success without a frame (K37).
        send_discard: DISCARD bios become TRIM commands. The kernel's devices have
            none (K38).
        shrink: frames follow the paths at once: one that is sent again is cut to what
            they carry by then, and they grow when a narrow interface is left. The
            kernel's keep their length (K52), and the next answer to a query decides.
        kick: after a while in which no frame was to be had, the timer starts the work
            again. The kernel's, since blk-mq, waits for an answer or another bio (K44).
        check_answers: answers count only if they come from a MAC address that has
            announced the device, and a read's answer that is too short is waited for
            again. The kernel looks at neither (K13, K61).
        follow_size: an open device that announces itself is asked for its size. The
            kernel asks when it is closed (K19).
        linger: seconds that a frame may live in the network, at least. Writes to the
            same sectors never overlap, and one that was sent more than once keeps them
            for so long, unless each transmission is answered; 0: no such care, as in
            the kernel.
        revive: a device that went down is used again when it answers, though it is
            held open. The kernel's stays down until its last user has closed it (K56).
        only: take notice of these devices alone; of all, if empty.
    """

    tags: Literal["user", "kernel"] = "user"
    tag_base: int | None = None
    hz: int = 250
    timing: str = "prompt"
    deadsecs: float = 180
    maxout: int = 64
    report_errors: bool = True
    send_flush: bool = True
    send_discard: bool = True
    shrink: bool = True
    kick: bool = True
    check_responses: bool = True
    follow_resize: bool = True
    quarantine: float = 2.0
    revive: bool = True
    only: Collection[Address] = ()

    @property
    def allows_fast_path(self) -> bool:
        """``initiator.io.fast_path`` may be used: no kernel behaviour is asked for."""
        return (
            self.tags == "user"
            and self.timing == "prompt"
            and self.report_errors
            and self.check_responses
        )

    @classmethod
    def kernel(cls) -> Options:
        """Everything as Linux 6.1 does it."""
        return cls(
            tags="kernel",
            timing="kernel",
            report_errors=False,
            send_flush=False,
            send_discard=False,
            check_responses=False,
            follow_resize=False,
            quarantine=0,
            shrink=False,
            kick=False,
            revive=False,
        )
