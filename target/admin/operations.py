"""The commands of the control socket."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aoe.address import Address
from aoe.errors import AoEError, NotFoundError, UsageError, from_os_error
from target.admin.status import describe_inventory
from target.config.toml import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from target.admin.notify import Notifier
    from target.config.settings import Settings
    from target.protocol.exports import Export
    from target.server.inventory import Inventory

log: Final = logging.getLogger("aoe-target")

_CLEAR: Final[dict[str, dict[str, Any]]] = {
    "clear-config": {"config_string": b""},
    "clear-mask": {"mask": ()},
    "clear-reserve": {"holders": ()},
}
"""The attributes of ``ClientState`` that each command clears."""


class Operations:
    """Executes the commands of the control socket.

    Call all methods from one thread, not the event loop's.

    Args:
        inventory: the exports and interfaces.
        settings: the settings at start.
        notifier: notifies the service manager of reloads.
    """

    def __init__(
        self, inventory: Inventory, settings: Settings, notifier: Notifier
    ) -> None:
        self._inventory = inventory
        self._settings = settings
        self._notifier = notifier

    def ask(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Execute a command.

        Args:
            command: ``status``, ``reload``, ``stop``, ``clear-config``, ``clear-mask``
                or ``clear-reserve``.
            arguments: ``address`` for the last three.

        Returns:
            The result, as plain JSON.

        Raises:
            AoEError: the command failed.
        """
        if command in _CLEAR:
            return self._clear(command, str(arguments.get("address")))
        commands: dict[str, Callable[[], dict[str, Any]]] = {
            "status": self.status,
            "reload": self.reload,
            "stop": self._stop,
        }
        if command not in commands:
            raise UsageError(command, "unknown command")
        return commands[command]()

    def status(self) -> dict[str, Any]:
        """Return the status of the target and its exports."""
        inventory, source = self._inventory, self._settings.source
        return inventory.service.call(lambda: describe_inventory(inventory, source))

    def reload(self) -> dict[str, Any]:
        """Reload the configuration file and apply the changes.

        Without a configuration file only the files of the disks are checked.
        """
        self._notifier.reloading(time.monotonic())
        try:
            return self._reload()
        finally:
            self._notifier.ready()

    def _reload(self) -> dict[str, Any]:
        source = self._settings.source
        try:
            settings = load_settings(source) if source else self._settings
            changes = self._inventory.change(settings)
        except AoEError as error:
            log.warning("reload: %s", error)
            raise
        self._settings = settings
        log.info("reload: %s", changes)
        return {
            name: [str(address) for address in getattr(changes, name)]
            for name in changes.__slots__
        }

    def _stop(self) -> dict[str, Any]:
        self._inventory.service.stop()
        return {}

    def _clear(self, command: str, text: str) -> dict[str, Any]:
        address = Address.parse(text)
        served = self._inventory.served
        exports = [each.export for each in served if each.settings.address == address]
        if not exports:
            raise NotFoundError(str(address), "not served here")
        for export in exports:
            self._inventory.service.call(partial(_empty, export, command))
            log.info("%s: %s", address, command)
        return {}


def _empty(export: Export, command: str) -> None:
    try:
        export.update_state(replace(export.state, **_CLEAR[command]))
    except OSError as error:
        raise from_os_error(str(export.address), error) from error
