"""A driver that is handed answers nobody should send, and what it may make of them.

Bios of every kind are kept on their way. Good answers to their frames, and replies that
a Linux driver once got, are spoilt: a byte, a field, a length, a tag or a sender at a
time. What an answer may do is judged here by the rules alone; the driver is then held
to it: which frame is done, which bio ends, how, and with which bytes.
"""

from __future__ import annotations

import random
import struct
from collections import Counter, deque
from typing import TYPE_CHECKING, Final

from aoe.ata import ATA_DATA, SECTOR
from aoe.identify import FeatureSet
from initiator.driver.bio import Bio, Op, bio_for
from initiator.driver.options import Options
from tests.fuzz_frames import golden_frames
from tests.unit.conftest import ADDRESS, FakeTarget, World

if TYPE_CHECKING:
    from collections.abc import Callable

    from initiator.driver.frame import Frame
    from tests.unit.conftest import Sent

SECTORS: Final = 2048
BIOS: Final = 12
"""Outstanding at any time."""
ABORTED: Final = (0x41, 0x04)
STRANGER: Final = bytes.fromhex("5254000bad00")
LENGTHS: Final = (0, 6, 14, 18, 23, 24, 27, 35, 36, 37, 59, 60, 547, 548, 1059, 1060)
FIELDS: Final = (
    *((6, 0xFF), (11, 0x01), (12, 0x08), (13, 0xFF), (14, 0x08), (14, 0x04)),
    *((14, 0xF0), (15, 0xFF), (16, 0xFF), (17, 0x01), (18, 0x01), (19, 0x01)),
    *((19, 0xFF), (20, 0x80), (21, 0x08), (22, 0xFF), (23, 0x01), (23, 0xFF)),
    *((24, 0xFF), (25, 0x04), (25, 0xFF), (26, 0xFF), (27, 0x01), (27, 0x20)),
    *((27, 0x80), (27, 0x40), (27, 0xFF), (28, 0xFF), (31, 0xFF), (33, 0xFF)),
)
"""Offsets of bytes, and which of their bits are worth turning over."""
PATIENCE: Final = 2
"""Retransmissions of a read after which a short answer counts (initiator/README.md)."""


class AnswerFuzz:
    """A device in use, and answers to it.

    Args:
        seed: the same frames for the same seed.
        check_answers: the option of the driver.

    Attributes:
        verdicts: how many frames were to be ignored, a success, a failure, or the word
            that FUA is not known.
        ended: how many bios ended well, and how many with an error.
        frames: how many were delivered.
    """

    def __init__(self, seed: int, *, check_responses: bool = True) -> None:
        self._luck = random.Random(seed)
        disk = bytearray(self._luck.randbytes(SECTORS * SECTOR))
        target = FakeTarget(disk)
        target.feature_sets = FeatureSet.TRIM
        options = Options(
            deadsecs=0, quarantine=0.5, only={ADDRESS}, check_responses=check_responses
        )
        self.world = World(options, (1500, 9000), target)
        self.world.bring_up()
        self._second = self.world.second_mac()
        self._second.feature_sets = FeatureSet.TRIM
        self.world.deliver(self._second.announce(), 1)
        self.world.run_until_idle()
        self.world.driver.open(self.world.device)
        self._golden = [each for each in golden_frames() if each[14] & 8]
        self._asked: deque[Sent] = deque(maxlen=64)
        self._data: dict[Bio, bytearray] = {}
        self._failing: set[Bio] = set()
        self.verdicts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.frames = 0

    # --- what a user does -------------------------------------------------------------

    def _submit(self) -> None:
        luck, world = self._luck, self.world
        room = min(SECTORS, world.device.ssize) - 20
        if room <= 0:
            self._recover()
            return
        sector, count = luck.randrange(room), luck.randint(1, 20)
        op = luck.choice([Op.READ, Op.READ, Op.WRITE, Op.WRITE, Op.FLUSH, Op.DISCARD])
        if op is Op.DISCARD:
            bio = Bio(op, sector, self._note_early, length=count * SECTOR)
        else:
            memory = bytearray(count * SECTOR if op is not Op.FLUSH else 0)
            fua = op is Op.WRITE and luck.random() < 0.3
            bio = bio_for(op, sector, memory, self._note_early, fua=fua)
        self._data[bio] = bytearray(bio.size if op is Op.READ else 0)
        world.submit(bio)
        bio.end_io = world.ended.append

    def _note_early(self, bio: Bio) -> None:
        # Refused: an answer has just said that there is no TRIM, or no such sector.
        assert bio.error is not None
        del self._data[bio]
        self.ended["refused"] += 1

    def _recover(self) -> None:
        """Let the disk say what it really is, when it was believed to be another."""
        world = self.world
        world.deliver(world.target.announce())
        for sent in world.take():
            if sent.registers.command == 0xEC:
                world.deliver(world.target.answer(sent.raw), sent.port)
            else:
                self._asked.append(sent)

    # --- what the wire does -----------------------------------------------------------

    def step(self) -> None:
        """Deliver one frame, and hold the driver to what it says."""
        world, luck = self.world, self._luck
        if len(self._data) < BIOS:
            self._submit()
        if luck.random() < 0.02:
            world.wait(luck.choice([0.001, 0.05, 0.6]))
        if luck.random() < 0.001:
            world.target.supports_fua = not world.target.supports_fua
            self._recover()
        self._asked.extend(world.take())
        if not self._asked:
            world.wait(1)
            self._asked.extend(world.take())
        world.now += 0.0001
        frame = self._make()
        out = {**world.device.factive, **world.device.rexmitq}
        verdict, f = self._judge(frame, out)
        self._expect(verdict, f, frame)
        bio = f.buf.bio if f is not None and f.buf is not None else None
        tag = f.tag if f is not None else None
        others = _commands({t: other for t, other in out.items() if t != tag})
        self.frames += 1
        self.verdicts[verdict] += 1
        world.deliver(frame, luck.randrange(2))
        self._check(tag, others, bio)

    def _choose(self) -> Sent:
        """Choose a frame to answer: most times one that still waits for it."""
        device = self.world.device
        waiting = [s for s in self._asked if s.tag in device.factive]
        stale = not waiting or self._luck.random() < 0.2
        return self._luck.choice(self._asked if stale else waiting)

    def _make(self) -> bytes:
        luck = self._luck
        sent = self._choose()
        kind = luck.random()
        if kind < 0.02:
            return luck.randbytes(luck.choice(LENGTHS))
        if kind < 0.03:
            frame = bytearray(self._second.announce(luck.choice([0, sent.tag])))
            return self._spoil(frame)
        if kind < 0.1:
            frame = bytearray(luck.choice(self._golden))
            frame[16:19] = struct.pack("!HB", *ADDRESS)
            frame[6:12] = luck.choice([self.world.target.mac, self._second.mac])
            frame[20:24] = struct.pack("!I", sent.tag)
            return bytes(frame) if luck.random() < 0.5 else self._spoil(frame)
        target = luck.choice([self.world.target, self._second])
        frame = target.answer(sent.raw)
        if kind < 0.35:
            return bytes(frame)
        if kind < 0.4:
            return bytes(target.refuse(sent.raw, luck.randrange(9)))
        return self._spoil(frame)

    def _spoil(self, frame: bytearray) -> bytes:
        luck = self._luck
        spoilers: list[Callable[[bytearray], None]] = [
            self._spoil_field,
            self._spoil_field,
            self._spoil_bytes,
            self._spoil_length,
            self._spoil_sender,
            self._spoil_tag,
        ]
        for _ in range(luck.choice([1, 1, 1, 2, 3])):
            luck.choice(spoilers)(frame)
        if frame[19:20] == b"\1":
            # Whoever announces the disk is one of its targets: there are two.
            frame[6:12] = self._second.mac
        return bytes(frame)

    def _spoil_field(self, frame: bytearray) -> None:
        offset, bits = self._luck.choice(FIELDS)
        if offset < len(frame):
            frame[offset] ^= bits

    def _spoil_bytes(self, frame: bytearray) -> None:
        if len(frame) > 12:
            at = self._luck.randrange(12, len(frame))
            frame[at] = self._luck.randrange(256)

    def _spoil_length(self, frame: bytearray) -> None:
        length = self._luck.choice([*LENGTHS, len(frame) - 1, len(frame) + 512])
        frame[:] = frame[: max(0, length)].ljust(max(0, length), b"\xee")

    def _spoil_sender(self, frame: bytearray) -> None:
        frame[6:12] = STRANGER[: len(frame[6:12])]

    def _spoil_tag(self, frame: bytearray) -> None:
        tag = self._luck.choice(self._asked).tag ^ self._luck.choice([0, 0, 1, 1 << 31])
        frame[20:24] = struct.pack("!I", tag)[: len(frame[20:24])]

    # --- what it has to make of it ----------------------------------------------------

    def _judge(self, frame: bytes, out: dict[int, Frame]) -> tuple[str, Frame | None]:
        """Say by the rules what a frame may do: nothing, or end one of ``out``."""
        if len(frame) < 24 or frame[12:14] != b"\x88\xa2" or not frame[14] & 8:
            return "ignored", None
        shelf, slot, command, tag = struct.unpack_from("!HBBI", frame, 16)
        macs = [target.addr for target in self.world.device.targets]
        f = out.get(tag)
        if (shelf, slot) != ADDRESS or command or frame[6:12] not in macs or f is None:
            return "ignored", None
        verdict = self._judge_answer(frame, f)
        return verdict, None if verdict == "ignored" else f

    def _judge_answer(self, frame: bytes, f: Frame) -> str:
        if frame[14] & 4:
            return "failed"
        if len(frame) < ATA_DATA:
            return "ignored"
        if frame[27] & 0xA9:
            unknown = f.fua and (frame[27], frame[25]) == ABORTED
            return "unknown" if unknown else "failed"
        if f.op is Op.READ and len(frame) < ATA_DATA + f.length:
            return "failed" if f.attempts >= PATIENCE else "ignored"
        return "done"

    def _expect(self, verdict: str, f: Frame | None, frame: bytes) -> None:
        if f is None or f.buf is None:
            return
        bio = f.buf.bio
        if verdict == "failed":
            self._failing.add(bio)
        elif verdict == "done" and f.op is Op.READ:
            at = (f.sector - bio.sector) * SECTOR
            self._data[bio][at : at + f.length] = frame[ATA_DATA : ATA_DATA + f.length]

    def _check(
        self, tag: int | None, others: set[tuple[int, int, int]], bio: Bio | None
    ) -> None:
        device = self.world.device
        after = {**device.factive, **device.rexmitq}
        assert tag not in after, "what was answered is done"
        assert others <= _commands(after), "and nothing else"
        ended, self.world.ended[:] = list(self.world.ended), []
        assert not ended or ended == [bio], "only the bio that was answered ends"
        for each in ended:
            data = self._data.pop(each)
            failing = each in self._failing
            self._failing.discard(each)
            assert (each.error is not None) is failing, f"ended with {each.error}"
            if each.op is Op.READ and not failing:
                assert each.vecs[0].page.data == data, "what was read is what came"
            self.ended["failed" if failing else "well"] += 1


def _commands(frames: dict[int, Frame]) -> set[tuple[int, int, int]]:
    """Name what waits for an answer, under whatever tag."""
    each = (f for f in frames.values() if not f.is_probe)
    return {(id(f), id(f.buf), f.sector) for f in each}
