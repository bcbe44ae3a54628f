from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from aoe.address import Address
from aoe.errors import AoEError
from aoe.net.base import LinkStatistics
from aoe.net.interfaces import Interface
from target.disks.memory import MemoryDisk
from target.protocol.exports import Export
from target.server.ports import Port
from tests.asking import ata, config
from tests.links import QueueLink

if TYPE_CHECKING:
    from collections.abc import Iterator

READ = 0x24


class FakeInterface:
    """A simulated interface, and the links that are opened on it."""

    def __init__(self) -> None:
        first = QueueLink()
        self.opened = [first]
        self.wanted: list[int] = []
        self.refuses = False
        self.facts = Interface(
            index=first.index,
            name=first.name,
            mac=first.mac,
            mtu=first.mtu,
            up=True,
            carrier=True,
            loopback=False,
            ethernet=True,
            kind="veth",
        )
        self.port = Port(first, [export()], self.reopen, frames=256)

    def reopen(self, name: str, frames: int) -> QueueLink:
        if self.refuses:
            raise AoEError(name, "refused")
        link = QueueLink(mtu=self.facts.mtu)
        link.name, link.mac, link.index = name, self.facts.mac, self.facts.index
        self.opened.append(link)
        self.wanted.append(frames)
        return link

    @property
    def link(self) -> QueueLink:
        return self.opened[-1]

    def change(self, **facts: object) -> None:
        """Change properties of the interface, and notify the port."""
        self.facts = replace(self.facts, **facts)  # type: ignore[arg-type] # as given
        self.port.update_interface([self.facts])


def export() -> Export:
    return Export(Address(7, 3), MemoryDisk(1 << 20), buffer_count=16)


@pytest.fixture
def interface() -> Iterator[FakeInterface]:
    interface = FakeInterface()
    yield interface
    interface.port.close()
    assert all(link.is_closed for link in interface.opened)


def announced(link: QueueLink) -> list[int]:
    """Return the sector counts of broadcast announcements."""
    return [sent[28] for sent in link.sent if sent[:6] == b"\xff" * 6]


def test_unchanged_interface_is_not_reopened(interface: FakeInterface) -> None:
    interface.change()
    assert len(interface.opened) == 1
    assert interface.link.sent == []
    assert interface.port.state == "up"


@pytest.mark.parametrize(("mtu", "sectors"), [(9000, 17), (576, 1)])
def test_changed_mtu_is_announced_p22_p48(
    interface: FakeInterface, mtu: int, sectors: int
) -> None:
    interface.change(mtu=mtu)
    assert announced(interface.link) == [sectors]
    assert interface.opened[0].is_closed
    interface.link.deliver(config(0))
    interface.port.serve(0.0)
    assert interface.link.sent[-1][28] == sectors


def test_frames_received_before_an_mtu_change_are_answered(
    interface: FakeInterface,
) -> None:
    first = interface.link
    first.deliver(*[ata(READ, lba) for lba in range(200)])
    interface.change(mtu=9000)
    assert len(first.sent) == 200
    assert interface.port.statistics().sent == 201
    target = interface.port.target(Address(7, 3))
    assert target is not None
    assert target.statistics().reads == 200


def test_transfer_that_fitted_the_old_mtu_is_dropped_p37(
    interface: FakeInterface,
) -> None:
    interface.change(mtu=9000)
    interface.change(mtu=1500)
    interface.link.deliver(ata(READ, 0, 17), ata(READ, 0, 18), ata(READ, 0, 2))
    while interface.port.serve(0.0):
        pass
    responses = [sent for sent in interface.link.sent if sent[19] == 0]
    assert [(response[26], response[27]) for response in responses] == [
        (18, 0x41),
        (0, 0x40),
    ]
    assert interface.port.targets[0].statistics().dropped == {"larger_than_mtu": 1}


def test_responses_have_the_changed_mac_address_p12(interface: FakeInterface) -> None:
    mac = bytes.fromhex("525400000077")
    interface.change(mac=mac)
    interface.link.deliver(ata(READ), config(0))
    interface.port.serve(0.0)
    assert {sent[6:12] for sent in interface.link.sent} == {mac}


def test_down_and_up_are_logged_and_up_is_announced(
    interface: FakeInterface, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    for facts in (
        {"up": False, "carrier": False},
        {"up": True},
        {"carrier": True},
        {"carrier": False},
        {"carrier": True},
    ):
        interface.change(**facts)
    assert caplog.messages == [
        "eth0: is down",
        "eth0: is up",
        "eth0: no carrier",
        "eth0: is up",
    ]
    assert announced(interface.link) == [2, 2]


def test_renamed_interface_is_followed(
    interface: FakeInterface, caplog: pytest.LogCaptureFixture
) -> None:
    interface.change(name="lan0")
    assert caplog.messages == ["eth0: renamed to lan0"]
    assert len(interface.opened) == 1
    # A later MTU change is that of the renamed interface.
    interface.change(mtu=9000)
    assert interface.link.name == "lan0"


def test_missing_interface_is_reopened_when_one_with_its_name_appears(
    interface: FakeInterface, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    port = interface.port
    port.update_interface([])
    assert (port.state, port.link) == ("gone", None)
    assert not port.serve(0.0)
    port.announce()
    interface.change(index=9, name="eth1")
    interface.change(name="eth0", up=False)
    assert port.state == "gone"
    interface.change(up=True, mtu=9000)
    assert port.state == "up"
    assert announced(interface.link) == [17]
    assert caplog.messages == [
        "eth0: interface is gone, waiting for it to reappear",
        "eth0: available again, MTU 9000",
    ]


def test_detached_interface_is_found_after_a_rename(
    interface: FakeInterface, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    interface.change(mtu=500)
    assert interface.port.state == "gone"
    interface.change(name="lan0", mtu=1500)
    assert (interface.port.state, interface.port.last_link.name) == ("up", "lan0")
    assert caplog.messages[-1] == "lan0: available again, MTU 1500"


def test_failed_reopen_is_retried(
    interface: FakeInterface, caplog: pytest.LogCaptureFixture
) -> None:
    interface.refuses = True
    interface.change(mtu=9000)
    assert interface.port.state == "gone"
    interface.port.update_interface([interface.facts])
    assert caplog.messages == ["eth0: refused, waiting", "eth0: refused"]
    interface.refuses = False
    interface.port.update_interface([interface.facts])
    assert interface.port.state == "up"


def test_port_waits_while_the_mtu_is_too_small(interface: FakeInterface) -> None:
    interface.change(mtu=547)
    assert interface.port.state == "gone"
    interface.change(mtu=548)
    assert interface.port.state == "up"
    assert announced(interface.link) == [1]


def test_more_buffers_reopen_the_link_p60(interface: FakeInterface) -> None:
    interface.port.ensure_buffers(256)
    assert len(interface.opened) == 1
    interface.port.ensure_buffers(1024)
    assert interface.wanted == [1024]
    interface.change(mtu=9000)
    assert interface.wanted == [1024, 1024]


def test_counters_are_kept_across_links(interface: FakeInterface) -> None:
    interface.link.deliver(config(0), config(0))
    interface.port.serve(0.0)
    interface.port.update_interface([])
    assert interface.port.statistics() == LinkStatistics(sent=2)
