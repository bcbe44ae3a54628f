"""When to send again and how much to have on its way.

Two sets of rules, chosen by name:

``kernel``
    What drivers/block/aoe/aoecmd.c does since v3.7: an RTT estimate that starts at
    250 ms with a deviation of 2 s, so that the first timeout is 16.5 s; a timer that
    looks every 100 ms; no back-off; the window falls to one frame at every loss; a
    target is given up for another after more than 10 s (K45-K50, K57).
``prompt``
    Ours, the default: the first timeout is 250 ms, later ones follow the estimate down
    to 20 ms and double with jitter at each loss of the same frame up to 500 ms; the
    window halves, once in a round trip; only answers to the latest transmission count;
    a target that has answered nothing since a frame was lost there twice is given up
    for another, and an interface after four losses in a row.
"""

from __future__ import annotations

import random
from typing import Final, Protocol

MICROSECOND: Final = 1e-6
_U32: Final = 0xFFFF_FFFF


class Window:
    """How many frames one target may have outstanding (``struct aoetgt``, K45).

    Attributes:
        nframes: upper bound: the target's buffer count, capped by the driver (K15).
        nout: frames outstanding now.
        maxout: frames allowed now.
        ssthresh: up to here each answer widens the window by one.
        next_cwnd: answers at full window to go until the next widening.
    """

    __slots__ = ("maxout", "next_cwnd", "nframes", "nout", "ssthresh")

    def __init__(self, nframes: int) -> None:
        self.nframes = nframes
        self.nout = 0
        self.maxout = self.ssthresh = nframes // 2
        self.next_cwnd = nframes

    @property
    def is_open(self) -> bool:
        """There is room for one more frame."""
        return self.nout < self.maxout

    def resize(self, nframes: int) -> None:
        """Take a new buffer count from a target that is known already (K15)."""
        self.nframes = nframes
        if nframes < self.maxout:
            self.reset()

    def reset(self) -> None:
        """Start anew from one frame."""
        self.maxout = 1
        self.ssthresh = self.nframes // 2
        self.next_cwnd = self.nframes

    def lost(self, _attempts: int, _sent: float, _now: float) -> None:
        """React to a frame that was not answered in time."""
        if self.maxout != 1:
            self.ssthresh = self.maxout // 2
            self.maxout = 1

    def answered(self) -> None:
        """React to an answer; called before ``nout`` is lowered."""
        if self.maxout >= self.nframes:
            return
        if self.maxout < self.ssthresh:
            self.maxout += 1
        elif self.nout == self.maxout:
            # The C is `next_cwnd-- == 0`: compared before it counts down.
            due = self.next_cwnd == 0
            self.next_cwnd -= 1
            if due:
                self.maxout += 1
                self.next_cwnd = self.maxout


class PromptWindow(Window):
    """A window for a loss here and there: it halves instead of falling to one."""

    __slots__ = ("_collapsed_at",)

    def __init__(self, nframes: int) -> None:
        super().__init__(max(nframes, 1))
        self.maxout = max(self.maxout, 1)
        self._collapsed_at = float("-inf")

    def resize(self, nframes: int) -> None:
        """As the kernel does; a target that announces 0 buffers still has one."""
        super().resize(max(nframes, 1))

    def lost(self, attempts: int, sent: float, now: float) -> None:
        """Halve, but once for all the frames that one burst lost together.

        A frame lost twice says that the target or the path has stopped: one frame at
        a time finds out when it is back.
        """
        if attempts > 1:
            super().lost(attempts, sent, now)
        elif sent > self._collapsed_at:
            self.maxout = self.ssthresh = max(1, self.maxout // 2)
        else:
            return
        self._collapsed_at = now


class Timing(Protocol):
    """The rules that a device runs by; times in seconds."""

    @property
    def tick(self) -> float:
        """The timer looks only so often; 0 when it fires exactly."""

    @property
    def buckets(self) -> int:
        """Frames lost together are sent again bucket by bucket, by their tags (K49)."""

    @property
    def by_burst(self) -> bool:
        """Frames that an interface lost together count as one loss of it."""

    @property
    def probes_only(self) -> bool:
        """A tainted target gets probes alone while another is not, and all of them."""

    @property
    def max_taint(self) -> int:
        """Answers that the most tainted target owes."""

    def reset(self) -> None:
        """Forget the estimate."""

    def sample(self, rtt: float) -> None:
        """Learn from an answer that took ``rtt``."""

    def sample_late(self, rtt: float) -> None:
        """Learn, or not, from an answer that nothing waited for (K58, K59)."""

    def timeout(self, attempts: int) -> float:
        """How long to wait for an answer to a frame sent ``attempts`` times before."""

    def window(self, nframes: int) -> Window:
        """Make the window for a new target."""

    def losses(self, nframes: int) -> int:
        """Losses in a row that an interface may have before it is left (K50)."""

    def should_taint(
        self, waited: float, unheard: int, deadsecs: float, count: int
    ) -> bool:
        """Tell whether a target shall be avoided after a loss (K50, K57).

        Args:
            waited: seconds that the frame has waited for it.
            unheard: transmissions that were lost there since it answered anything.
            deadsecs: as ``Options`` has it.
            count: targets that the device has.
        """

    def probe_interval(self, taint: int) -> float:
        """How long after a lost probe the next one goes out."""


class KernelTiming:
    """The Linux driver's estimate, in its own scaled integers (K46, K47)."""

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
        """Average 250 ms, deviation 2 s (RTTAVG_INIT, RTTDEV_INIT)."""
        self.rttavg = 250_000 << self.RTTSCALE
        self.rttdev = 2_000_000 << self.RTTDSCALE

    def sample(self, rtt: float) -> None:
        """``calc_rttavg``: gains of 1/256 and 1/8."""
        error = round(rtt / MICROSECOND) - (self.rttavg >> self.RTTSCALE)
        self.rttavg = self.rttavg + error & _U32
        deviation = abs(error) - (self.rttdev >> self.RTTDSCALE)
        self.rttdev = self.rttdev + deviation & _U32

    sample_late = sample

    def timeout(self, attempts: int) -> float:  # noqa: ARG002 - no back-off (K48)
        """Return 2 * average + 8 * deviation, at least 1 us, in 32 bits each."""
        microseconds = ((2 * self.rttavg & _U32) >> self.RTTSCALE) + (
            (8 * self.rttdev & _U32) >> self.RTTDSCALE
        )
        return max(microseconds, 1) * MICROSECOND

    def window(self, nframes: int) -> Window:
        """Make a window of half the buffer count, be it 0 (K16)."""
        return Window(nframes)

    def losses(self, nframes: int) -> int:
        """Return twice the buffer count."""
        return 2 * nframes

    def should_taint(self, waited: float, _: int, deadsecs: float, count: int) -> bool:
        """Tell whether it let a frame wait too long, in whole seconds."""
        limit = min(deadsecs // count, self.HARD_SCORN_SECS)
        return bool(deadsecs) and int(waited) > limit

    def probe_interval(self, taint: int) -> float:
        """Return so many timeouts: 1000 of them, if it was silent for long."""
        return taint * self.timeout(0)


class PromptTiming:
    """An estimate as TCP keeps it (RFC 6298), with back-off and jitter."""

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
        """Forget the estimate."""
        self._rtt = 0.0
        self._variation = 0.0

    def sample(self, rtt: float) -> None:
        """Gains of 1/8 and 1/4; every transmission has its own tag, so all count."""
        if self._rtt == 0.0:
            self._rtt = rtt
            self._variation = rtt / 2
        else:
            error = rtt - self._rtt
            self._rtt += error / 8
            self._variation += (abs(error) - self._variation) / 4

    def sample_late(self, rtt: float) -> None:
        """Late answers must not inflate the estimate."""

    def timeout(self, attempts: int) -> float:
        """Return the estimate with room, doubled for each attempt up to 500 ms.

        A target that is slower than that is waited for as long as it takes.
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
        """Make a window that opens at half the buffer count, at least at one frame."""
        return PromptWindow(nframes)

    def losses(self, _nframes: int) -> int:
        """Return 4, of bursts: about 100 ms without any answer."""
        return 4

    def should_taint(self, _waited: float, unheard: int, _: float, _count: int) -> bool:
        """Tell whether a frame was lost there twice and nothing answered since."""
        return unheard >= self.LOST_TWICE

    def probe_interval(self, taint: int) -> float:
        """Return so many timeouts, at most 500 ms."""
        return min(taint * self.timeout(0), self.BACKED_OFF)


TIMINGS: Final[dict[str, type[KernelTiming | PromptTiming]]] = {
    "kernel": KernelTiming,
    "prompt": PromptTiming,
}
