"""Hand answers to the initiator that nobody should send, and hold it to the rules.

They are good ones that were spoilt, replies that a Linux driver got, and noise. None
may raise anything, end a bio that it does not answer, or end one wrongly.
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
"""Frames between two words about how far it is."""


def run(fuzz: AnswerFuzz, count: int) -> str:
    """Deliver so many frames; return what broke a rule, or nothing."""
    start = time.monotonic()
    for number in range(count):
        try:
            fuzz.step()
        except Exception:  # noqa: BLE001 - what comes out is the find
            return traceback.format_exc()
        if number % CHECKPOINT == 0 and sys.stderr.isatty():
            rate = number / max(time.monotonic() - start, 0.001)
            line = f"\r{number:,} of {count:,} frames, {rate:,.0f} a second "
            print(line, end="", file=sys.stderr, flush=True)
    return ""


def main(words: Sequence[str] | None = None) -> int:
    """Fuzz, and print what became of it; 1 if a rule was broken."""
    parser = argparse.ArgumentParser(prog="fuzz_answers", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, metavar="N")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same frames")
    options = parser.parse_args(words)
    fuzz = AnswerFuzz(options.seed)
    start = time.monotonic()
    find = run(fuzz, options.frames)
    driver = fuzz.world.driver
    for title, counts in (("answers", fuzz.verdicts), ("bios", fuzz.ended)):
        print(f"{title}: {', '.join(f'{n:,} {what}' for what, n in counts.items())}")
    print(
        f"unexpected {driver.unexpected:,}, from strangers {driver.foreign:,}, "
        f"too short {driver.runts:,}"
    )
    if find:
        print(f"BROKEN by frame {fuzz.frames:,}:\n{find}")
    print(
        f"{fuzz.frames:,} frames, seed {options.seed}, "
        f"{'a rule' if find else 'no rule'} broken, {time.monotonic() - start:.0f} s"
    )
    return 1 if find else 0


if __name__ == "__main__":
    sys.exit(main())
