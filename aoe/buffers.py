"""What counts as memory: the buffer types that the codecs read and write."""

from __future__ import annotations

from mmap import mmap
from typing import TypeAlias

ReadBuffer: TypeAlias = bytes | bytearray | memoryview | mmap
WriteBuffer: TypeAlias = bytearray | memoryview | mmap
