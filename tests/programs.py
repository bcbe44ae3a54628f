"""The command lines of ``aoe`` and ``aoe-target``."""

from __future__ import annotations

from typing import Final

from aoe.common.programs import program_command

AOE: Final = program_command("aoe")
AOE_TARGET: Final = program_command("aoe-target")
