"""The exports and interfaces of one process, and how a reload changes them.

::

    settings --> compare with the exports that are served
                   |
                   +-- new        probe, claim, open ----------------> attach, announce
                   +-- changed    detach --> flush, close, open -----> attach, announce
                   +-- removed    detach --> flush, close
                   +-- unchanged  not touched, or reopened if a flush has failed or its
                                  file is another one

Opening can take seconds (an NBD server, three probes on the wire). It is done outside
of the event loop, which goes on serving; only attach and detach run in the loop's
thread. If a step fails, the steps before it are rolled back.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from aoe.errors import AoEError, BusyError, from_os_error
from aoe.net.base import check_distinct
from target.config.toml import advise_keys
from target.disks import check_disk, identify_files, measure_disk
from target.server.opening import Opener, find_engine, open_export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from aoe.address import Address
    from target.config.settings import ExportSettings, Settings
    from target.protocol.engine import MakeEngine
    from target.protocol.exports import Export
    from target.server.ports import Port
    from target.server.service import Service

log: Final = logging.getLogger("aoe-target")


@dataclass(eq=False, slots=True)
class Served:
    """One export that is served.

    Args:
        settings: its settings, without ``create``.
        export: the export.
        make_engine: makes what executes the requests, for each interface.
        files: what its paths named when it was opened.
        resources: closes the disk and releases the address claims.
    """

    settings: ExportSettings
    export: Export
    make_engine: MakeEngine
    files: tuple[tuple[int, int], ...]
    resources: ExitStack


@dataclass(frozen=True, slots=True)
class Changes:
    """The result of a reload, as addresses.

    Args:
        added: exports that were not served before.
        removed: exports that are no longer served.
        changed: exports with other settings.
        resized: exports with another size.
        reopened: exports whose file was replaced, truncated or removed, or of which a
            flush had failed.
        failed: exports to which this has happened, and that cannot be reopened.
    """

    added: tuple[Address, ...] = ()
    removed: tuple[Address, ...] = ()
    changed: tuple[Address, ...] = ()
    resized: tuple[Address, ...] = ()
    reopened: tuple[Address, ...] = ()
    failed: tuple[Address, ...] = ()

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
        service: the event loop that serves them. Attach and detach run in the caller's
            thread at first, and in the loop's thread after ``go_live``.
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
        """Run attach and detach in the event loop's thread from now on."""
        self._run = self.service.call

    def change(self, settings: Settings) -> Changes:
        """Serve the exports of these settings, and no others.

        After ``go_live``, call it from one thread at a time, not the loop's.

        Raises:
            AoEError: something could not be opened; all changes were rolled back.
        """
        try:
            return self._change(settings)
        except AoEError as error:
            if settings.source is None:
                raise
            raise advise_keys(error) from error

    def _change(self, settings: Settings) -> Changes:
        self._opener.force = settings.force
        kept, replacements, new, removed = _compare(self.served, settings.exports)
        resized = [each for each in kept if _is_resized(each)]
        reopened = [each for each in kept if each not in resized and _must_reopen(each)]
        same = [*resized, *reopened]
        for each in same:
            # Before the open disk is closed: it could not be opened again either.
            wanted = each.settings
            check_disk(wanted.path, wanted.disk, wanted.overlay)
        replacements += [(each, each.settings) for each in same]
        with ExitStack() as undo:
            self._open_ports(settings, undo)
            links = [self.ports[name].link for name in settings.frames()]
            check_distinct((link.index, link.name) for link in links if link)
            deferred = self._add_new(new, undo)
            for previous, wanted in replacements:
                after = self._replace(previous, wanted)
                undo.callback(_log_errors, self._replace, after, previous.settings)
            for each in removed:
                self._drop(each)
                undo.callback(_log_errors, self._add, each.settings, each.export)
            for wanted in deferred:
                undo.callback(self._drop, self._add(wanted))
            undo.pop_all()
        self._close_ports(settings)
        return Changes(
            added=_addresses(new),
            removed=_addresses(each.settings for each in removed),
            changed=_addresses(c for each, c in replacements if each not in same),
            resized=_addresses(each.settings for each in resized),
            reopened=_addresses(each.settings for each in reopened),
            failed=_addresses(
                each.settings
                for each in kept
                if each not in same and each.export.disk.find_fault()
            ),
        )

    def close(self) -> None:
        """Close all disks; the service closes the ports."""
        for each in self.served:
            each.resources.close()
        self.served.clear()

    # --- exports ------------------------------------------------------------------

    def _add_new(
        self, new: Sequence[ExportSettings], undo: ExitStack
    ) -> list[ExportSettings]:
        # New exports are opened before any other is changed. One whose image or address
        # is still held by another export is deferred until that one is closed.
        present = {each.settings.address for each in self.served}
        self._opener.probe(self.ports, [c for c in new if c.address not in present])
        deferred = []
        for wanted in new:
            try:
                undo.callback(self._drop, self._add(wanted))
            except BusyError:
                if not present:
                    raise
                deferred.append(wanted)
        return deferred

    def _add(self, wanted: ExportSettings, previous: Export | None = None) -> Served:
        with ExitStack() as undo:
            self._opener.claim(self.ports, wanted, undo)
            make_engine = find_engine(wanted.engine)
            export = open_export(wanted, undo, previous)
            files = identify_files(wanted.path, wanted.overlay)
            settings = _without_create(wanted)
            served = Served(settings, export, make_engine, files, undo.pop_all())
        self._run(partial(self._attach, served))
        self.served.append(served)
        return served

    def _attach(self, served: Served) -> None:
        for name in served.settings.interfaces:
            port = self.ports[name]
            port.announce([port.add(served.export, served.make_engine)])

    def _detach(self, served: Served) -> None:
        for name in served.settings.interfaces:
            self.ports[name].remove(served.settings.address)

    def _drop(self, served: Served) -> None:
        try:
            self._retire(served)
        except AoEError as error:
            log.warning("%s: %s", served.settings.address, error)
            served.resources.close()

    def _retire(self, served: Served) -> None:
        self._run(partial(self._detach, served))
        self.served.remove(served)
        export = served.export
        fault = export.disk.find_fault()
        if export.flush_failed:
            log.warning(
                "%s: closed after a failed flush: what was not flushed may be lost",
                export.address,
            )
        elif not export.disk.read_only:
            try:
                export.flush()
            except OSError as error:
                if not fault:
                    fix = "Reload again to reopen it all the same"
                    raise from_os_error(served.settings.path, error, fix) from error
                log.warning("%s: closed: it %s", served.settings.path, fault)
        served.resources.close()

    def _replace(self, served: Served, wanted: ExportSettings) -> Served:
        # Requests are dropped meanwhile and retransmitted by the clients. If the flush
        # fails, the old disk stays open so that the clients' next flush reports it.
        try:
            self._retire(served)
        except AoEError:
            self._run(partial(self._attach, served))
            self.served.append(served)
            raise
        try:
            return self._add(wanted, served.export)
        except AoEError:
            _log_errors(self._add, served.settings, served.export)
            raise

    # --- interfaces ---------------------------------------------------------------

    def _open_ports(self, settings: Settings, undo: ExitStack) -> None:
        for name, frames in settings.frames().items():
            port = self.ports.get(name)
            if port is not None:
                self._run(partial(port.ensure_buffers, frames))
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
    # Returns the kept exports, the replacements, the new ones, and the removed ones.
    remaining = list(served)
    kept, new = [], []
    for wanted in exports:
        unchanged = [
            each for each in remaining if each.settings == _without_create(wanted)
        ]
        if unchanged:
            kept.append(unchanged[0])
            remaining.remove(unchanged[0])
        else:
            new.append(wanted)
    replacements = []
    for wanted in tuple(new):
        matches = [
            each for each in remaining if each.settings.address == wanted.address
        ]
        if matches:
            replacements.append((matches[0], wanted))
            remaining.remove(matches[0])
            new.remove(wanted)
    return kept, replacements, new, remaining


def _without_create(wanted: ExportSettings) -> ExportSettings:
    # A disk image is created only once, not again at a reload.
    return msgspec.structs.replace(wanted, disk=replace(wanted.disk, create=None))


def _addresses(exports: Iterable[ExportSettings]) -> tuple[Address, ...]:
    return tuple(sorted(wanted.address for wanted in exports))


def _is_resized(served: Served) -> bool:
    wanted = served.settings
    try:
        size = measure_disk(wanted.path, wanted.disk, wanted.overlay)
    except AoEError as error:
        # The open disk is kept: its file can have been removed.
        log.warning("%s", error)
        return False
    return size is not None and size != served.export.disk.size


def _must_reopen(served: Served) -> bool:
    wanted = served.settings
    try:
        files = identify_files(wanted.path, wanted.overlay)
    except AoEError:
        return False  # It has no name; DiskWatch logs that.
    export = served.export
    return (
        files != served.files or export.flush_failed or bool(export.disk.find_fault())
    )


def _log_errors(function: Callable[..., object], *arguments: object) -> None:
    try:
        function(*arguments)
    except AoEError as error:
        log.error("no longer served: %s", error)  # noqa: TRY400 - one line
