"""The control socket of the target, client and server side."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aoe.common import control

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_KIND: Final = "target"

find_targets: Final = partial(control.find_running, _KIND)
send_command: Final = partial(control.send_command, kind=_KIND)


class ControlServer(control.ControlServer):
    """The ``aoe.common.control.ControlServer`` of a target."""

    def __init__(
        self,
        handle: Callable[[str, dict[str, Any]], dict[str, Any]],
        path: Path | None = None,
    ) -> None:
        super().__init__(handle, path, kind=_KIND, log=logging.getLogger("aoe-target"))
