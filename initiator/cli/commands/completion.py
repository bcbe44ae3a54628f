"""``aoe completion``: print shell completion scripts."""

from __future__ import annotations

from typing import Final

from aoe.common.completion import completion_command

completion: Final = completion_command("aoe")
