"""Options that select between the kernel's behaviour and the driver's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection

    from aoe.address import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a driver.

    Args:
        tags: ``user`` sets bit 31, so that a kernel driver on this host ignores the
            responses (P11); ``kernel`` builds tags of a counter and jiffies (K24).
        tag_base: 10 bits of every ``user`` tag. Each driver of a host needs its own,
            since all of them receive all responses. None: ``Host`` claims a free value.
        tag_start: the number with which ``user`` tags begin. ``Host`` selects one at
            random, since a driver that ended just before may have had the same base.
        hz: jiffies per second, for ``kernel`` tags.
        timing: ``prompt`` or ``kernel``, see ``initiator.driver.timing``.
        deadsecs: seconds for which a frame, retransmissions included, may stay
            unanswered before the device is down and its bios fail, even if other frames
            are answered; 0 means forever (K54).
        maxout: maximum number of frames outstanding at one target (K15).
        report_errors: an AoE error ends its bio, except error 3: the disk is waited for
            until ``deadsecs``. The kernel logs each error and retransmits the frame
            until then (K62).
        send_flush: send FLUSH CACHE for FLUSH bios, and honour FUA. The kernel reports
            success without sending a frame (K37).
        send_discard: send TRIM for DISCARD bios. The kernel's devices do not support
            DISCARD (K38).
        follow_mtu: apply a changed frame size at once: truncate frames that are
            retransmitted, and use larger frames after a narrow interface was ejected.
            Find out what a path carries that loses long frames (P23).
            In the kernel, frames keep their length (K52), and sizes change with the
            next query config response.
        kick: restart transmission from the timer after no frame could be allocated. The
            kernel's timer does not since blk-mq; it depends on a response or another
            bio (K44).
        check_responses: ignore responses from MAC addresses that have not announced the
            device, and responses to reads that are too short. The kernel checks neither
            (K13, K61).
        verify_paths: a MAC address gets data only after IDENTIFY, sent to it, has shown
            that it serves the same disk: when it is new, after it has announced itself
            again or has not responded, and after the device failed. The kernel
            believes each config response (K14-K19).
        follow_resize: send IDENTIFY to an open device that announces itself, to learn
            its size. The kernel does so only while it is closed (K19).
        quarantine: seconds that a frame is assumed to stay in the network, at least. No
            ``user`` tag is used again within this time. Overlapping writes are never
            outstanding together, and the sectors of a write that was retransmitted stay
            locked for this time after it has ended, unless each transmission is
            answered. 0: no range locks, as in the kernel.
        revive: use a device again that went down and responds, even if it is open. In
            the kernel it stays down until the last close (K56).
        only: ignore all other devices; if empty, use all devices.
    """

    tags: Literal["user", "kernel"] = "user"
    tag_base: int | None = None
    tag_start: int = 0
    hz: int = 250
    timing: str = "prompt"
    deadsecs: float = 180
    maxout: int = 64
    report_errors: bool = True
    send_flush: bool = True
    send_discard: bool = True
    follow_mtu: bool = True
    kick: bool = True
    check_responses: bool = True
    verify_paths: bool = True
    follow_resize: bool = True
    quarantine: float = 2.0
    revive: bool = True
    only: Collection[Address] = ()

    @property
    def allows_fast_path(self) -> bool:
        """Whether ``initiator.io.fast_path`` implements what these options select."""
        return (
            self.tags == "user"
            and self.timing == "prompt"
            and self.report_errors
            and self.check_responses
        )

    @classmethod
    def kernel(cls) -> Options:
        """Return options that select the behaviour of Linux 6.1."""
        return cls(
            tags="kernel",
            timing="kernel",
            report_errors=False,
            send_flush=False,
            send_discard=False,
            check_responses=False,
            verify_paths=False,
            follow_resize=False,
            quarantine=0,
            follow_mtu=False,
            kick=False,
            revive=False,
        )
