"""What is remembered of a flush that failed."""

from __future__ import annotations

import errno
import time
from typing import Final

_DOUBT: Final = 5.0


class Doubt:
    """Lets flushes go on failing for a while when one has failed.

    The kernel tells of data that it could not write once, and then never again. But a
    client whose answer is lost asks again and must hear the same (P2), and whoever else
    shares the disk is to hear of it as well.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._why = ""

    def remember(self, error: OSError) -> None:
        """Begin to doubt, or begin anew."""
        self._until = time.monotonic() + _DOUBT
        self._why = error.strerror or str(error)

    def check(self) -> None:
        """Return where there is none.

        Raises:
            OSError: five seconds have not passed.
        """
        if self._until and time.monotonic() < self._until:
            raise OSError(errno.EIO, self._why)
