"""Type aliases of the buffers that the codecs read from and write to."""

from __future__ import annotations

from mmap import mmap
from typing import TypeAlias

ReadBuffer: TypeAlias = bytes | bytearray | memoryview | mmap
WriteBuffer: TypeAlias = bytearray | memoryview | mmap
