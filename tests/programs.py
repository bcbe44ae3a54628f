"""The command lines of ``aoe`` and ``aoe-target``.

nohup, or a background job of a script, would have the tests and with them the programs
ignore signals.
"""

from __future__ import annotations

from typing import Final

from aoe.common.process.programs import program_command

SIGNALLED: Final = ("env", "--default-signal=HUP,INT,QUIT")
"""The start of a command line: a program that gets these signals."""
AOE: Final = [*SIGNALLED, *program_command("aoe")]
AOE_TARGET: Final = [*SIGNALLED, *program_command("aoe-target")]
