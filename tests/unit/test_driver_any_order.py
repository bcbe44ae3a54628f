"""Stateful tests: any order of responses, losses, duplicates, delays and bad frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aoe.ata import ATA_DATA, SECTOR, AFlag, Opcode
from aoe.header import HEADER, Command
from initiator.driver.bio import Bio, Op, UserPages, bio_for
from initiator.driver.options import Options

if TYPE_CHECKING:
    from tests.unit.conftest import Connect, Sent, World

READABLE = 256
"""Sectors below are only read; each one from here is written once."""
MODES = {
    "user": Options(),
    "kernel": Options.kernel(),
    "user with the kernel's timing": Options(timing="kernel"),
    "kernel with prompt timing": Options(
        tags="kernel", report_errors=False, send_flush=False
    ),
}
MTUS = [(1500,), (4200,), (1500, 9000), (600, 4200, 1500)]


def is_probe(frame: Sent) -> bool:
    """Return True for a READ with payload (K57a), or an IDENTIFY."""
    if frame.registers.command == Opcode.IDENTIFY:
        return True
    return len(frame.raw) > ATA_DATA and not frame.registers.aflags & AFlag.WRITE


def check_bookkeeping(world: World) -> None:
    """Check that frames are in the right queues and counted (K3, K5, K51)."""
    for device in world.driver.devices.values():
        assert not device.factive.keys() & device.rexmitq.keys()
        for queue in (device.factive, device.rexmitq):
            assert all(tag == frame.tag for tag, frame in queue.items())
        # A test of what a path carries is not counted (P23).
        out = [f.target for f in device.factive.values() if not f.is_path_test]
        assert all(out.count(t) == t.window.nout for t in device.targets)
        probed = [frame.target for frame in device.factive.values() if frame.is_probe]
        assert all(probed.count(t) == t.nout_probes <= 1 for t in device.targets)
        used = {*device.factive.values(), *device.rexmitq.values()}
        free = [frame for target in device.targets for frame in target.ffree]
        assert len(used) + len(free) == len(used | {*free})


class DriverMachine(RuleBasedStateMachine):
    """A state machine of a device, its users, the network and the clock."""

    def __init__(self, connect: Connect) -> None:
        super().__init__()
        self.connect = connect
        self.world = connect()
        self.wire: list[Sent] = []
        self.submitted: list[tuple[Bio, bytes | bytearray]] = []
        self.errors = 0
        self.next_write = READABLE
        self.has_failed = False

    @initialize(
        mode=st.sampled_from(list(MODES)),
        mtus=st.sampled_from(MTUS),
        buffers=st.integers(2, 40),
    )
    def start(self, mode: str, mtus: tuple[int, ...], buffers: int) -> None:
        self.world = self.connect(MODES[mode], mtus=mtus, buffers=buffers)

    # --- users ------------------------------------------------------------------------

    @rule(sector=st.integers(0, READABLE - 1), count=st.integers(1, 40))
    def read(self, sector: int, count: int) -> None:
        count = min(count, READABLE - sector)
        buffer = bytearray(count * SECTOR)
        self._submit(bio_for(Op.READ, sector, buffer, self.world.ended.append), buffer)

    @precondition(lambda self: self.next_write < 512)
    @rule(counts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def write(self, counts: list[int]) -> None:
        bio = Bio(Op.WRITE, self.next_write, self.world.ended.append)
        for count in counts:
            sectors = min(count, 512 - self.next_write)
            if sectors:
                data = b"%7d\n" % self.next_write * (64 * sectors)
                bio.add_page(UserPages(data), len(data))
                self.next_write += sectors
        whole = b"".join(bytes(vec.page.data) for vec in bio.vecs)
        self._submit(bio, whole)

    @rule()
    def flush(self) -> None:
        self._submit(bio_for(Op.FLUSH, 0, b"", self.world.ended.append), b"")

    def _submit(self, bio: Bio, data: bytes | bytearray) -> None:
        self.submitted.append((bio, data))
        self.world.submit(bio)

    @rule(is_open=st.booleans())
    def open_or_close(self, *, is_open: bool) -> None:
        if is_open:
            self.world.driver.open(self.world.device)
        elif self.world.device.nopen:
            self.world.driver.close(self.world.device)

    # --- the network ------------------------------------------------------------------

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), keeps=st.booleans())
    def answer(self, data: st.DataObject, *, keeps: bool) -> None:
        """Answer a frame in flight; one that is kept can be answered again (K64)."""
        frame = self._pick(data)
        self.world.respond(frame)
        if keeps:
            self.wire.append(frame)

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self._pick(data)

    @rule()
    def lose_all(self) -> None:
        self.wire.clear()

    @precondition(lambda self: self.wire)
    @rule(data=st.data(), kind=st.sampled_from(["status", "error", "runt", "long"]))
    def answer_with_error(self, data: st.DataObject, kind: str) -> None:
        frame = self._pick(data)
        if frame.header.command == Command.CONFIG:
            return
        target = self.world.target
        self.errors += kind != "long"
        if kind == "status":
            response = target.report(frame.raw, 0x01, 0x04)
        elif kind == "error":
            response = target.refuse(frame.raw, data.draw(st.integers(0, 7)))
        elif kind == "runt":
            response = target.answer(frame.raw)[:-1]
        else:
            response = target.answer(frame.raw) + b"\xee" * 99
        self.world.deliver(response, frame.port)

    def _pick(self, data: st.DataObject) -> Sent:
        return self.wire.pop(data.draw(st.integers(0, len(self.wire) - 1)))

    @rule(buffers=st.integers(2, 40), data=st.data())
    def announce(self, buffers: int, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self.world.ports) - 1))
        other = self.world.second_mac(buffers=buffers)
        peer = data.draw(st.sampled_from([self.world.target, other]))
        self.world.deliver(peer.announce(), number)

    @rule(data=st.binary(max_size=80))
    def receive_bytes(self, data: bytes) -> None:
        self.world.deliver(data)

    @rule(
        flags=st.sampled_from([0x10, 0x18, 0x1C]),
        command=st.sampled_from([0, 2, 3, 9]),
        tag=st.integers(0, 0xFFFF_FFFF),
        rest=st.binary(max_size=40),
    )
    def receive_unrelated(
        self, flags: int, command: int, tag: int, rest: bytes
    ) -> None:
        device = self.world.device
        if tag not in device.factive and tag not in device.rexmitq:
            address = self.world.target.address
            macs = (b"\2" * 6, b"\4" * 6)
            frame = HEADER.pack(*macs, 0x88A2, flags, 1, *address, command, tag)
            self.world.deliver(frame + rest)

    # --- the clock --------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.0005, 0.01, 0.1, 0.3, 1.0, 16.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule(seconds=st.sampled_from([0.001, 0.5, 20.0]))
    def the_timer_is_late(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.driver.handle_timer(self.world.now)

    @rule()
    def more_than_deadsecs_passes(self) -> None:
        self.world.wait(250)

    # --- invariants -------------------------------------------------------------------

    @invariant()
    def check_state(self) -> None:
        sent = self.world.take()
        # A probe is sent even if the window is full (K57a).
        assert all(frame.room >= 0 or is_probe(frame) for frame in sent)
        # Older frames are lost.
        self.wire = (self.wire + sent)[-60:]
        check_bookkeeping(self.world)
        ended = self.world.ended
        assert len(ended) == len({*ended})
        self.has_failed |= not self.world.is_up
        failed = [bio.error for bio in ended if bio.error is not None]
        assert self.has_failed or len(failed) <= self.errors

    def teardown(self) -> None:
        """Check that every bio ends if everything is answered from now on."""
        self.world.respond(*self.wire)
        self.wire.clear()
        for _ in range(1000):
            # Up to 1000 probes of a tainted target, each sent when the one before it is
            # answered (K57), before time goes on and lost frames expire.
            self.world.run_until_idle()
            if len(self.world.ended) == len(self.submitted):
                break
            self.world.wait(5)
        assert {*self.world.ended} == {bio for bio, _ in self.submitted}
        assert len(self.world.ended) == len(self.submitted)
        for bio, data in self.submitted:
            if bio.error is None:
                place = slice(bio.sector * SECTOR, bio.sector * SECTOR + len(data))
                assert self.world.target.disk[place] == data
        check_bookkeeping(self.world)


def test_k63_every_bio_ends_once_with_the_right_data_in_any_order(
    connect: Connect,
) -> None:
    class Machine(DriverMachine):
        def __init__(self) -> None:
            super().__init__(connect)

    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=50, stateful_step_count=40, deadline=None),
    )


def test_k57_a_lost_frame_is_retransmitted_after_1000_probes(connect: Connect) -> None:
    """The taint falls by 1 with each probe, and responses take no time here."""
    run = DriverMachine(connect)
    run.start(mode="kernel", mtus=(1500,), buffers=12)
    run.read(sector=0, count=11)
    run.time_passes(16.0)
    run.check_state()
    run.lose_all()
    world = run.world
    world.deliver(world.second_mac(buffers=4).announce())
    [tainted, _] = world.device.targets
    assert tainted.taint == 1000
    run.check_state()
    run.teardown()
    assert tainted.taint == 0
    assert [bio.error for bio in world.ended] == [None]


# --- arbitrary bytes ------------------------------------------------------------------


class ArbitraryFrame(NamedTuple):
    """A frame with arbitrary fields; a ``tag`` below 10 selects one in use."""

    ethertype: int
    verfl: int
    error: int
    shelf: int
    slot: int
    command: int
    tag: int
    rest: bytes

    def pack(self, live: list[int]) -> bytes:
        tag = live[self.tag % len(live)] if self.tag < 10 else self.tag
        return (
            HEADER.pack(
                b"\2" * 6,
                KNOWN if self.error % 2 else bytes([4, self.error, 0, 0, 0, 0]),
                self.ethertype,
                self.verfl,
                self.error,
                self.shelf,
                self.slot,
                self.command,
                tag,
            )
            + self.rest
        )


KNOWN = b"\x52\x54\x00\xae\x00\x01"
BYTE = st.integers(0, 0xFF)
ARBITRARY_FRAMES = st.builds(
    ArbitraryFrame,
    ethertype=st.sampled_from([0x88A2] * 9 + [0x0800]),
    verfl=st.sampled_from([0x18] * 4 + [0x1C] * 2 + [0x10, 0x08, 0xFF]),
    error=BYTE,
    shelf=st.sampled_from([1] * 9 + [0, 0x0FFF, 0xFFFF]),
    slot=st.sampled_from([2] * 9 + [0, 0xFF]),
    command=st.sampled_from([0] * 4 + [1] * 4 + [2, 3, 0xF0]) | BYTE,
    tag=st.integers(0, 9) | st.integers(0, 0xFFFF_FFFF),
    rest=st.builds(
        lambda start, more: start + bytes(8 * more), st.binary(max_size=40), BYTE
    ),
)
in_all_modes = pytest.mark.parametrize("mode", MODES)


@in_all_modes
@settings(max_examples=50, deadline=None)
@given(frames=st.lists(ARBITRARY_FRAMES, max_size=12))
def test_k13_no_frame_raises_or_keeps_a_bio_from_ending(
    connect: Connect, mode: str, frames: list[ArbitraryFrame]
) -> None:
    world = connect(MODES[mode], buffers=8)
    for sector in range(0, 30, 5):
        world.read(sector, bytearray(5 * SECTOR))
    requests = world.take()
    live = [frame.tag for frame in requests]
    for arbitrary in frames:
        world.deliver(arbitrary.pack(live))
        check_bookkeeping(world)
    world.respond(*requests)
    world.run_until_idle()
    assert len(world.ended) == len({*world.ended}) == 6


@in_all_modes
@settings(max_examples=50, deadline=None)
@given(frames=st.lists(st.binary(max_size=100), max_size=20))
def test_k13_no_bytes_raise(connect: Connect, mode: str, frames: list[bytes]) -> None:
    world = connect(MODES[mode])
    world.read(0, bytearray(SECTOR))
    requests = world.take()
    for frame in frames:
        world.deliver(frame)
        world.deliver(requests[0].raw[: len(frame)] + frame)
    world.respond(*requests)
    assert [bio.error for bio in world.ended] == [None]
