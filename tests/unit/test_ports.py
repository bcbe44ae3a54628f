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


class Cable:
    """An interface, and the links that are opened on it."""

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
        """Let the interface be otherwise, and the port see it."""
        self.facts = replace(self.facts, **facts)  # type: ignore[arg-type] # as given
        self.port.update_interface([self.facts])


def export() -> Export:
    return Export(Address(7, 3), MemoryDisk(1 << 20), buffer_count=16)


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable()
    yield cable
    cable.port.close()
    assert all(link.is_closed for link in cable.opened)


def announced(link: QueueLink) -> list[int]:
    """Return the sectors a frame that were announced to everybody."""
    return [sent[28] for sent in link.sent if sent[:6] == b"\xff" * 6]


def test_unchanged_interface_is_not_reopened(cable: Cable) -> None:
    cable.change()
    assert len(cable.opened) == 1
    assert cable.link.sent == []
    assert cable.port.state == "up"


@pytest.mark.parametrize(("mtu", "sectors"), [(9000, 17), (576, 1)])
def test_changed_mtu_is_announced_p22_p48(cable: Cable, mtu: int, sectors: int) -> None:
    cable.change(mtu=mtu)
    assert announced(cable.link) == [sectors]
    assert cable.opened[0].is_closed
    cable.link.deliver(config(0))
    cable.port.serve(0.0)
    assert cable.link.sent[-1][28] == sectors


def test_frames_received_before_an_mtu_change_are_answered(cable: Cable) -> None:
    first = cable.link
    first.deliver(*[ata(READ, lba) for lba in range(200)])
    cable.change(mtu=9000)
    assert len(first.sent) == 200
    assert cable.port.statistics().sent == 201
    target = cable.port.target(Address(7, 3))
    assert target is not None
    assert target.statistics().reads == 200


def test_transfer_that_fitted_the_old_mtu_is_dropped_p37(cable: Cable) -> None:
    cable.change(mtu=9000)
    cable.change(mtu=1500)
    cable.link.deliver(ata(READ, 0, 17), ata(READ, 0, 18), ata(READ, 0, 2))
    while cable.port.serve(0.0):
        pass
    replies = [sent for sent in cable.link.sent if sent[19] == 0]
    assert [(reply[26], reply[27]) for reply in replies] == [(18, 0x41), (0, 0x40)]
    assert cable.port.targets[0].statistics().dropped == {"larger_than_mtu": 1}


def test_responses_have_the_changed_mac_address_p12(cable: Cable) -> None:
    mac = bytes.fromhex("525400000077")
    cable.change(mac=mac)
    cable.link.deliver(ata(READ), config(0))
    cable.port.serve(0.0)
    assert {sent[6:12] for sent in cable.link.sent} == {mac}


def test_down_and_up_are_logged_and_up_is_announced(
    cable: Cable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    for facts in (
        {"up": False, "carrier": False},
        {"up": True},
        {"carrier": True},
        {"carrier": False},
        {"carrier": True},
    ):
        cable.change(**facts)
    assert caplog.messages == [
        "eth0: is down",
        "eth0: is up",
        "eth0: no carrier",
        "eth0: is up",
    ]
    assert announced(cable.link) == [2, 2]


def test_renamed_interface_is_followed(
    cable: Cable, caplog: pytest.LogCaptureFixture
) -> None:
    cable.change(name="lan0")
    assert caplog.messages == ["eth0: renamed to lan0"]
    assert len(cable.opened) == 1
    # An MTU that changes then is the renamed one's.
    cable.change(mtu=9000)
    assert cable.link.name == "lan0"


def test_missing_interface_is_reopened_when_one_with_its_name_appears(
    cable: Cable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    port = cable.port
    port.update_interface([])
    assert (port.state, port.link) == ("gone", None)
    assert not port.serve(0.0)
    port.announce()
    cable.change(index=9, name="eth1")
    cable.change(name="eth0", up=False)
    assert port.state == "gone"
    cable.change(up=True, mtu=9000)
    assert port.state == "up"
    assert announced(cable.link) == [17]
    assert caplog.messages == [
        "eth0: interface is gone, waiting for it to reappear",
        "eth0: available again, MTU 9000",
    ]


def test_detached_interface_is_found_after_a_rename(
    cable: Cable, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "aoe-target")
    cable.change(mtu=500)
    assert cable.port.state == "gone"
    cable.change(name="lan0", mtu=1500)
    assert (cable.port.state, cable.port.last_link.name) == ("up", "lan0")
    assert caplog.messages[-1] == "lan0: available again, MTU 1500"


def test_failed_reopen_is_retried(
    cable: Cable, caplog: pytest.LogCaptureFixture
) -> None:
    cable.refuses = True
    cable.change(mtu=9000)
    assert cable.port.state == "gone"
    cable.port.update_interface([cable.facts])
    assert caplog.messages == ["eth0: refused, waiting", "eth0: refused"]
    cable.refuses = False
    cable.port.update_interface([cable.facts])
    assert cable.port.state == "up"


def test_port_waits_while_the_mtu_is_too_small(cable: Cable) -> None:
    cable.change(mtu=547)
    assert cable.port.state == "gone"
    cable.change(mtu=548)
    assert cable.port.state == "up"
    assert announced(cable.link) == [1]


def test_more_buffers_reopen_the_link_p60(cable: Cable) -> None:
    cable.port.ensure_buffers(256)
    assert len(cable.opened) == 1
    cable.port.ensure_buffers(1024)
    assert cable.wanted == [1024]
    cable.change(mtu=9000)
    assert cable.wanted == [1024, 1024]


def test_counters_are_kept_across_links(cable: Cable) -> None:
    cable.link.deliver(config(0), config(0))
    cable.port.serve(0.0)
    cable.port.update_interface([])
    assert cable.port.statistics() == LinkStatistics(sent=2)
