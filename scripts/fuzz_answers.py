"""Fuzz the initiator with malformed responses, and check its rules.

The frames are mutated responses, responses from captures of the Linux driver, and
random bytes. None may raise an exception, complete a bio of another request, or
complete a bio with the wrong result.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from typing import TYPE_CHECKING, Final

from tests.answer_fuzz import AnswerFuzz

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAMES: Final = 2_000_000
CHECKPOINT: Final = 1 << 14
"""Frames between updates of the progress line."""


def run(fuzz: AnswerFuzz, count: int) -> str:
    """Deliver ``count`` frames; return the traceback of a broken rule, or ""."""
    start = time.monotonic()
    for number in range(count):
        try:
            fuzz.step()
        except Exception:  # noqa: BLE001 - any exception is a finding
            return traceback.format_exc()
        if number % CHECKPOINT == 0 and sys.stderr.isatty():
            rate = number / max(time.monotonic() - start, 0.001)
            line = f"\r{number:,} of {count:,} frames, {rate:,.0f}/s "
            print(line, end="", file=sys.stderr, flush=True)
    return ""


def main(args: Sequence[str] | None = None) -> int:
    """Fuzz, print the counts, and return 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="fuzz_answers", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N")
    parser.add_argument("--seed", type=int, default=1, help="seed of the frames")
    options = parser.parse_args(args)
    fuzz = AnswerFuzz(options.seed)
    start = time.monotonic()
    finding = run(fuzz, options.frames)
    driver = fuzz.world.driver
    for title, counts in (("responses", fuzz.verdicts), ("bios", fuzz.ended)):
        print(f"{title}: {', '.join(f'{n:,} {what}' for what, n in counts.items())}")
    print(
        f"unexpected {driver.unexpected:,}, from other targets {driver.foreign:,}, "
        f"too short {driver.runts:,}"
    )
    if finding:
        print(f"FAILED at frame {fuzz.frames:,}:\n{finding}")
    print(
        f"{fuzz.frames:,} frames, seed {options.seed}, "
        f"{'a rule' if finding else 'no rule'} broken, {time.monotonic() - start:.0f} s"
    )
    return 1 if finding else 0


if __name__ == "__main__":
    sys.exit(main())
