"""Retransmission timeouts, congestion windows and when to taint a target.

There are two implementations, selected by name:

``kernel``
    As drivers/block/aoe/aoecmd.c since v3.7: the RTT estimate starts at 250 ms with a
    deviation of 2 s, so that the initial RTO is 16.5 s; the timer runs every 100 ms; no
    back-off; the window collapses to one frame on each loss; a target is tainted when a
    frame has waited for more than 10 s (K45-K50, K57).
``prompt``
    The default: the initial RTO is 250 ms; later ones follow the RTT estimate down to
    20 ms, and double with jitter on each further loss of the same frame, up to 500 ms;
    the window is halved, at most once per round trip, and collapses to one frame when
    a frame expires twice; late responses give no RTT sample; a target is tainted when
    it has not responded since a frame expired there twice, and an interface is ejected
    after more than four bursts of losses in a row.
"""

from __future__ import annotations

import random
from typing import Final, Protocol

MICROSECOND: Final = 1e-6
_U32: Final = 0xFFFF_FFFF


class Window:
    """Congestion window of one target (fields of ``struct aoetgt``, K45).

    Attributes:
        nframes: upper bound: the target's buffer count, limited by the driver (K15).
        nout: frames outstanding.
        maxout: maximum number of outstanding frames, the window.
        ssthresh: below it, each response widens the window by one (slow start).
        next_cwnd: responses at full window until the window is widened by one.
    """

    __slots__ = ("maxout", "next_cwnd", "nframes", "nout", "ssthresh")

    def __init__(self, nframes: int) -> None:
        self.nframes = nframes
        self.nout = 0
        self.maxout = self.ssthresh = nframes // 2
        self.next_cwnd = nframes

    @property
    def is_open(self) -> bool:
        """Whether there is room for another frame."""
        return self.nout < self.maxout

    def resize(self, nframes: int) -> None:
        """Set the buffer count that a known target announces (K15)."""
        self.nframes = nframes
        if nframes < self.maxout:
            self.reset()

    def reset(self) -> None:
        """Reset to a window of one frame (``aoecmd_wreset``)."""
        self.maxout = 1
        self.ssthresh = self.nframes // 2
        self.next_cwnd = self.nframes

    def on_loss(self, _attempts: int, _sent: float, _now: float) -> None:
        """Collapse the window after a frame has expired."""
        if self.maxout != 1:
            self.ssthresh = self.maxout // 2
            self.maxout = 1

    def on_response(self) -> None:
        """Widen the window after a response; called before ``nout`` is lowered."""
        if self.maxout >= self.nframes:
            return
        if self.maxout < self.ssthresh:
            self.maxout += 1
        elif self.nout == self.maxout:
            # In C, `next_cwnd-- == 0`: compared before the decrement.
            is_due = self.next_cwnd == 0
            self.next_cwnd -= 1
            if is_due:
                self.maxout += 1
                self.next_cwnd = self.maxout


class PromptWindow(Window):
    """A window for sporadic loss: halved instead of collapsed to one."""

    __slots__ = ("_collapsed_at",)

    def __init__(self, nframes: int) -> None:
        super().__init__(max(nframes, 1))
        self.maxout = max(self.maxout, 1)
        self._collapsed_at = float("-inf")

    def resize(self, nframes: int) -> None:
        """Set the buffer count; 0 is treated as 1."""
        super().resize(max(nframes, 1))

    def on_loss(self, attempts: int, sent: float, now: float) -> None:
        """Halve the window, once for all frames lost in the same burst.

        If a frame expires twice, the target or the path probably stalls: collapse the
        window to one frame.
        """
        if attempts > 1:
            super().on_loss(attempts, sent, now)
        elif sent > self._collapsed_at:
            self.maxout = self.ssthresh = max(1, self.maxout // 2)
        else:
            return
        self._collapsed_at = now


class Timing(Protocol):
    """RTT estimate and policy of a device; times in seconds."""

    @property
    def tick(self) -> float:
        """Interval of the timer; 0 if it fires exactly when a frame expires."""

    @property
    def buckets(self) -> int:
        """Hash buckets by tag, whose order is that of retransmissions (K49)."""

    @property
    def by_burst(self) -> bool:
        """Whether frames lost together count as one loss of the interface."""

    @property
    def probes_only(self) -> bool:
        """Whether a tainted target gets only probes while another is untainted.

        If so, all tainted targets are probed after each response.
        """

    @property
    def max_taint(self) -> int:
        """Maximum of a target's taint."""

    def reset(self) -> None:
        """Reset the RTT estimate."""

    def sample(self, rtt: float) -> None:
        """Update the estimate with a round-trip time."""

    def sample_late(self, rtt: float) -> None:
        """Handle the round-trip time of an unexpected response (K58, K59)."""

    def timeout(self, attempts: int) -> float:
        """Return the RTO of a frame that has expired ``attempts`` times."""

    def window(self, nframes: int) -> Window:
        """Create the window of a new target."""

    def max_losses(self, nframes: int) -> int:
        """Return the losses in a row above which an interface is ejected (K50)."""

    def should_taint(
        self, waited: float, unanswered: int, deadsecs: float, count: int
    ) -> bool:
        """Return True if a target is to be tainted after a loss (K50, K57).

        Args:
            waited: seconds since the frame was first sent to the target.
            unanswered: transmissions of the frame that expired, if the target has not
                responded to anything since the first; else 0.
            deadsecs: the option.
            count: number of the device's targets.
        """

    def probe_interval(self, taint: int) -> float:
        """Return the time from a lost probe to the next one."""


class KernelTiming:
    """The Linux driver's estimator, with its scaled integers (K46, K47)."""

    RTTSCALE: Final = 8
    RTTDSCALE: Final = 3
    HARD_SCORN_SECS: Final = 10
    tick = 0.1
    buckets = 61
    by_burst = False
    probes_only = False
    max_taint = 1000

    __slots__ = ("rttavg", "rttdev")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set average 250 ms, deviation 2 s (RTTAVG_INIT, RTTDEV_INIT)."""
        self.rttavg = 250_000 << self.RTTSCALE
        self.rttdev = 2_000_000 << self.RTTDSCALE

    def sample(self, rtt: float) -> None:
        """Update average and deviation with gains 1/256 and 1/8 (``calc_rttavg``)."""
        error = round(rtt / MICROSECOND) - (self.rttavg >> self.RTTSCALE)
        self.rttavg = self.rttavg + error & _U32
        deviation = abs(error) - (self.rttdev >> self.RTTDSCALE)
        self.rttdev = self.rttdev + deviation & _U32

    sample_late = sample

    def timeout(self, attempts: int) -> float:  # noqa: ARG002 - no back-off (K48)
        """Return 2 * average + 8 * deviation, at least 1 us (``rto``).

        The products overflow at 32 bits, as in the kernel.
        """
        microseconds = ((2 * self.rttavg & _U32) >> self.RTTSCALE) + (
            (8 * self.rttdev & _U32) >> self.RTTDSCALE
        )
        return max(microseconds, 1) * MICROSECOND

    def window(self, nframes: int) -> Window:
        """Create a window of half the buffer count, possibly 0 (K16)."""
        return Window(nframes)

    def max_losses(self, nframes: int) -> int:
        """Return twice the buffer count."""
        return 2 * nframes

    def should_taint(self, waited: float, _: int, deadsecs: float, count: int) -> bool:
        """Return True if the frame has waited too long, in whole seconds (K50)."""
        limit = min(deadsecs // count, self.HARD_SCORN_SECS)
        return bool(deadsecs) and int(waited) > limit

    def probe_interval(self, taint: int) -> float:
        """Return ``taint`` times the RTO, up to 1000 times."""
        return taint * self.timeout(0)


class PromptTiming:
    """TCP's estimator (RFC 6298) with exponential back-off and jitter."""

    FIRST: Final = 0.25
    SHORTEST: Final = 0.02
    BACKED_OFF: Final = 0.5
    LOST_TWICE: Final = 2
    tick = 0.0
    buckets = 1
    by_burst = True
    probes_only = True
    max_taint = 12

    __slots__ = ("_random", "_rtt", "_variation")

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret
        self.reset()

    def reset(self) -> None:
        """Reset the RTT estimate."""
        self._rtt = 0.0
        self._variation = 0.0

    def sample(self, rtt: float) -> None:
        """Update average and deviation with gains 1/8 and 1/4.

        Retransmitted frames are sampled too: each transmission has its own tag.
        """
        if self._rtt == 0.0:
            self._rtt = rtt
            self._variation = rtt / 2
        else:
            error = rtt - self._rtt
            self._rtt += error / 8
            self._variation += (abs(error) - self._variation) / 4

    def sample_late(self, rtt: float) -> None:
        """Ignore it: late responses must not inflate the estimate."""

    def timeout(self, attempts: int) -> float:
        """Return average + 4 * deviation, at least 20 ms, with back-off.

        The RTO doubles with each attempt, up to the larger of 500 ms and the RTO
        without back-off.
        """
        if self._rtt == 0.0:
            estimate = self.FIRST
        else:
            estimate = max(self._rtt + 4 * self._variation, self.SHORTEST)
        if not attempts:
            return estimate
        doubled = estimate * 2.0 ** min(attempts, 10) * self._random.uniform(0.9, 1.1)
        return max(estimate, min(doubled, self.BACKED_OFF))

    def window(self, nframes: int) -> Window:
        """Create a window of half the buffer count, at least one frame."""
        return PromptWindow(nframes)

    def max_losses(self, _nframes: int) -> int:
        """Return 4 bursts: about 100 ms without a response."""
        return 4

    def should_taint(
        self, _waited: float, unanswered: int, _: float, _count: int
    ) -> bool:
        """Return True after two losses of a frame without any response since."""
        return unanswered >= self.LOST_TWICE

    def probe_interval(self, taint: int) -> float:
        """Return ``taint`` times the RTO, at most 500 ms."""
        return min(taint * self.timeout(0), self.BACKED_OFF)


TIMINGS: Final[dict[str, type[KernelTiming | PromptTiming]]] = {
    "kernel": KernelTiming,
    "prompt": PromptTiming,
}
