"""Bios between queueing and completion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from initiator.lab.traces.state import Bounded

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(eq=False, slots=True)
class Flight:
    """A bio in flight.

    Args:
        device: major and minor number, as ``152,0``.
        sector: first sector.
        end: the sector behind the last.
        pages: page frame numbers.
    """

    device: str
    sector: int
    end: int
    pages: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Device:
    starts: dict[int, Flight] = field(default_factory=dict)
    ends: dict[int, list[Flight]] = field(default_factory=dict)

    def remove(self, flight: Flight) -> None:
        if self.starts.get(flight.sector) is flight:
            del self.starts[flight.sector]
        left = [each for each in self.ends[flight.end] if each is not flight]
        if left:
            self.ends[flight.end] = left
        else:
            del self.ends[flight.end]

    def ending_within(self, sector: int, end: int) -> list[Flight]:
        if end - sector < len(self.ends):
            found = [self.ends.get(each, []) for each in range(sector + 1, end + 1)]
        else:
            found = [
                flights for each, flights in self.ends.items() if sector < each <= end
            ]
        return [flight for flights in found for flight in flights]


class Flights:
    """The bios in flight, in bounded number.

    Args:
        limit: maximum number of bios, and of their pages.
    """

    def __init__(self, limit: int) -> None:
        self.known: Bounded[int, Flight] = Bounded(limit)
        self._devices: dict[str, _Device] = {}
        self._disks: set[str] = set()
        self._pages = 0

    def queue(self, device: str, sector: int, sectors: int) -> Flight:
        """Add a bio."""
        flight = Flight(device, sector, sector + sectors)
        place = self._devices.setdefault(device, _Device())
        place.starts[sector] = flight
        place.ends.setdefault(flight.end, []).append(flight)
        self.known.items[id(flight)] = flight
        return flight

    def forget(self) -> Flight | None:
        """Remove and return the oldest bio, if there are too many bios or pages."""
        known = self.known
        if max(len(known.items), self._pages) <= known.limit:
            return None
        flight = next(iter(known.items.values()))
        known.forgotten += 1
        self._remove(flight)
        return flight

    def add_page(self, flight: Flight, pfn: int) -> None:
        """Add a page to a bio."""
        flight.pages.append(pfn)
        self._pages += 1

    def find(self, device: str, sector: int) -> Flight | None:
        """Return the bio that begins at a sector, or None."""
        place = self._devices.get(device)
        return place.starts.get(sector) if place else None

    def complete(
        self, device: str, sector: int, sectors: int, *, is_request: bool
    ) -> list[Flight]:
        """Remove and return the bios that end with these sectors.

        A request may consist of several bios. A bio that the driver has advanced has no
        sectors left, and begins where it ended. Of a partition, the bio is queued with
        its own device and the request completed with that of the disk (K150).
        """
        first = sector if sectors else sector - 1
        if is_request:
            self._disks.add(device)
        places = self._disk_and_partitions(device) if is_request else [device]
        for each in places:
            if each not in self._devices:
                continue
            found = self._devices[each].ending_within(first, sector + sectors)
            if found:
                for flight in found:
                    self._remove(flight)
                return found
        return []

    def _disk_and_partitions(self, disk: str) -> Iterator[str]:
        """Yield a disk and its partitions, as far as bios of these are in flight."""
        yield disk
        major, _, minor = disk.partition(",")
        partitions = [
            device
            for device in self._devices
            if device.startswith(f"{major},") and device not in self._disks
        ]
        partitions.sort(key=lambda device: int(device.partition(",")[2]))
        yield from (
            device
            for device in partitions
            if int(device.partition(",")[2]) > int(minor)
        )

    def _remove(self, flight: Flight) -> None:
        del self.known.items[id(flight)]
        self._pages -= len(flight.pages)
        place = self._devices[flight.device]
        place.remove(flight)
        if not place.ends:
            del self._devices[flight.device]
