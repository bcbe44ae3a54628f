"""What one process serves: its exports and its interfaces, and how both change.

::

    settings --> compare with what is served
                   |
                   +-- new       ask the wire, claim, open ----------> attach, announce
                   +-- changed   detach --> flush, close, open ------> attach, announce
                   +-- gone      detach --> flush, close
                   +-- the same  stays, untouched

Opening takes its time (an NBD server, three questions to the wire), and the loop serves
on meanwhile: only attaching and detaching are done in its thread. Whatever fails, what
was done by then is undone, and everything is as it was.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from aoe.errors import AoEError, BusyError, from_os_error
from target.disks import measure_disk
from target.server.opening import Opener, open_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aoe.address import Address
    from target.config.settings import ExportSettings, Settings
    from target.protocol.exports import Export
    from target.server.ports import Port
    from target.server.service import Service

log: Final = logging.getLogger("aoe-target")


@dataclass(eq=False, slots=True)
class Served:
    """One export that is served.

    Args:
        chosen: what was asked for, but for making a disk that is not there.
        export: what it has become.
        resources: closes its disk and lets go of its address.
    """

    chosen: ExportSettings
    export: Export
    resources: ExitStack


@dataclass(frozen=True, slots=True)
class Changes:
    """What a reload has changed, as addresses.

    Args:
        added: served now, and not before.
        removed: not served any more.
        changed: served with other settings.
        resized: served with another size.
    """

    added: tuple[Address, ...] = ()
    removed: tuple[Address, ...] = ()
    changed: tuple[Address, ...] = ()
    resized: tuple[Address, ...] = ()

    def __str__(self) -> str:
        parts = [
            f"{name} {', '.join(map(str, getattr(self, name)))}"
            for name in self.__slots__
            if getattr(self, name)
        ]
        return "; ".join(parts) or "nothing has changed"


class Inventory:
    """The exports and interfaces of one process.

    Args:
        service: what serves them. Until it runs, everything happens at once; after
            ``go_live``, in its thread.
        opener: opens interfaces and claims addresses.
    """

    def __init__(self, service: Service, opener: Opener) -> None:
        self.service = service
        self.served: list[Served] = []
        self.ports: dict[str, Port] = {}
        self._opener = opener
        self._run: Callable[[Callable[[], object]], object] = lambda function: (
            function()
        )

    def go_live(self) -> None:
        """Leave attaching and detaching to the service's thread from now on."""
        self._run = self.service.call

    def change(self, settings: Settings) -> Changes:
        """Serve what these settings say, and nothing else.

        Once live, it is for any thread but the service's, one at a time.

        Raises:
            AoEError: something could not be opened; everything is as it was.
        """
        self._opener.force = settings.force
        kept, pairs, new, gone = _compare(self.served, settings.exports)
        resized = [each for each in kept if _has_another_size(each)]
        pairs += [(each, each.chosen) for each in resized]
        with ExitStack() as undo:
            self._open_ports(settings, undo)
            late = self._add_early(new, undo)
            for before, chosen in pairs:
                after = self._exchange(before, chosen)
                undo.callback(_whatever_happens, self._exchange, after, before.chosen)
            for each in gone:
                self._drop(each)
                undo.callback(_whatever_happens, self._add, each.chosen, each.export)
            for chosen in late:
                undo.callback(self._drop, self._add(chosen))
            undo.pop_all()
        self._close_ports(settings)
        return Changes(
            added=_addresses(new),
            removed=_addresses(each.chosen for each in gone),
            changed=_addresses(c for each, c in pairs if each not in resized),
            resized=_addresses(each.chosen for each in resized),
        )

    def close(self) -> None:
        """Close all disks; the ports are the service's."""
        for each in self.served:
            each.resources.close()
        self.served.clear()

    # --- exports ------------------------------------------------------------------

    def _add_early(
        self, new: Sequence[ExportSettings], undo: ExitStack
    ) -> list[ExportSettings]:
        # Before anything else is touched. What waits for another export to let go of
        # its image or its address comes late.
        ours = {each.chosen.address for each in self.served}
        self._opener.probe(self.ports, [c for c in new if c.address not in ours])
        late = []
        for chosen in new:
            try:
                undo.callback(self._drop, self._add(chosen))
            except BusyError:
                if not ours:
                    raise
                late.append(chosen)
        return late

    def _add(self, chosen: ExportSettings, before: Export | None = None) -> Served:
        with ExitStack() as undo:
            self._opener.claim(self.ports, chosen, undo)
            export = open_export(chosen, undo, before)
            served = Served(_lasting(chosen), export, undo.pop_all())
        self._run(partial(self._attach, served))
        self.served.append(served)
        return served

    def _attach(self, served: Served) -> None:
        for name in served.chosen.interfaces:
            port = self.ports[name]
            port.announce([port.add(served.export)])

    def _detach(self, served: Served) -> None:
        for name in served.chosen.interfaces:
            self.ports[name].remove(served.chosen.address)

    def _drop(self, served: Served) -> None:
        try:
            self._retire(served)
        except AoEError as error:
            log.warning("%s: %s", served.chosen.address, error)
            served.resources.close()

    def _retire(self, served: Served) -> None:
        self._run(partial(self._detach, served))
        self.served.remove(served)
        try:
            if not served.export.disk.read_only:
                served.export.make_stable()
        except OSError as error:
            raise from_os_error(served.chosen.path, error) from error
        served.resources.close()

    def _exchange(self, served: Served, chosen: ExportSettings) -> Served:
        # Requests get silence meanwhile, and are sent again. A flush that fails must be
        # the client's to see: the disk stays as it is.
        try:
            self._retire(served)
        except AoEError:
            self._run(partial(self._attach, served))
            self.served.append(served)
            raise
        try:
            return self._add(chosen, served.export)
        except AoEError:
            _whatever_happens(self._add, served.chosen, served.export)
            raise

    # --- interfaces ---------------------------------------------------------------

    def _open_ports(self, settings: Settings, undo: ExitStack) -> None:
        for name, frames in settings.frames().items():
            port = self.ports.get(name)
            if port is not None:
                self._run(partial(port.widen, frames))
                continue
            self.ports[name] = port = self._opener.port(name, frames)
            undo.callback(self._close_port, name)
            self._run(partial(self.service.ports.append, port))

    def _close_ports(self, settings: Settings) -> None:
        for name in self.ports.keys() - settings.frames().keys():
            self._close_port(name)

    def _close_port(self, name: str) -> None:
        port = self.ports.pop(name)
        self._run(partial(self.service.remove, port))


def _compare(
    served: Iterable[Served], exports: Iterable[ExportSettings]
) -> tuple[
    list[Served],
    list[tuple[Served, ExportSettings]],
    list[ExportSettings],
    list[Served],
]:
    # What stays as it is, what changes into what, what is new, and what is gone.
    rest = list(served)
    kept, new = [], []
    for chosen in exports:
        same = [each for each in rest if each.chosen == _lasting(chosen)]
        if same:
            kept.append(same[0])
            rest.remove(same[0])
        else:
            new.append(chosen)
    pairs = []
    for chosen in tuple(new):
        namesakes = [each for each in rest if each.chosen.address == chosen.address]
        if namesakes:
            pairs.append((namesakes[0], chosen))
            rest.remove(namesakes[0])
            new.remove(chosen)
    return kept, pairs, new, rest


def _lasting(chosen: ExportSettings) -> ExportSettings:
    # Making a disk that is not there is done once.
    return msgspec.structs.replace(chosen, disk=replace(chosen.disk, create=None))


def _addresses(exports: Iterable[ExportSettings]) -> tuple[Address, ...]:
    return tuple(sorted(chosen.address for chosen in exports))


def _has_another_size(served: Served) -> bool:
    chosen = served.chosen
    try:
        size = measure_disk(chosen.path, chosen.disk, chosen.overlay)
    except AoEError as error:
        # What is open goes on, though its file may have been removed.
        log.warning("%s", error)
        return False
    return size is not None and size != served.export.disk.size


def _whatever_happens(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except AoEError as error:
        log.error("not served any more: %s", error)  # noqa: TRY400 - one line
