"""Fuzz the driver with damaged responses, and check its reactions.

Bios of all kinds are kept outstanding. Valid responses to their frames, and responses
captured from a Linux initiator's network, are damaged in bytes, fields, length, tag or
source MAC. Paths are not verified (``tests/unit/test_driver_verify.py`` is for that).
What a response may cause is computed here from the rules, and compared with
what the driver does: which frame is done, which bio ends, with which error and data.
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

    from initiator.driver.structs import Frame
    from tests.unit.conftest import Sent

SECTORS: Final = 2048
BIOS: Final = 12
"""Outstanding at any time."""
ABORTED: Final = (0x41, 0x04)
FOREIGN_MAC: Final = bytes.fromhex("5254000bad00")
LENGTHS: Final = (0, 6, 14, 18, 23, 24, 27, 35, 36, 37, 59, 60, 547, 548, 1059, 1060)
FIELDS: Final = (
    *((6, 0xFF), (11, 0x01), (12, 0x08), (13, 0xFF), (14, 0x08), (14, 0x04)),
    *((14, 0xF0), (15, 0xFF), (16, 0xFF), (17, 0x01), (18, 0x01), (19, 0x01)),
    *((19, 0xFF), (20, 0x80), (21, 0x08), (22, 0xFF), (23, 0x01), (23, 0xFF)),
    *((24, 0xFF), (25, 0x04), (25, 0xFF), (26, 0xFF), (27, 0x01), (27, 0x20)),
    *((27, 0x80), (27, 0x40), (27, 0xFF), (28, 0xFF), (31, 0xFF), (33, 0xFF)),
)
"""Offsets of bytes, with the bits to invert."""
RUNT_RETRIES: Final = 2
"""Retransmissions of a read after which a runt fails it (K61)."""


class AnswerFuzz:
    """A device in use, and the responses to it.

    Args:
        seed: the same frames for the same seed.
        check_responses: the option of the driver.

    Attributes:
        verdicts: number of frames by expected effect: ignored, done, failed, or FUA
            unsupported.
        ended: number of bios by result.
        frames: number of frames delivered.
    """

    def __init__(self, seed: int, *, check_responses: bool = True) -> None:
        self._rng = random.Random(seed)
        disk = bytearray(self._rng.randbytes(SECTORS * SECTOR))
        target = FakeTarget(disk)
        target.feature_sets = FeatureSet.TRIM
        options = Options(
            deadsecs=0,
            quarantine=0.5,
            only={ADDRESS},
            check_responses=check_responses,
            verify_paths=False,
        )
        self.world = World(options, (1500, 9000), target)
        self.world.bring_up()
        self._second = self.world.second_mac()
        self._second.feature_sets = FeatureSet.TRIM
        self.world.deliver(self._second.announce(), 1)
        self.world.run_until_idle()
        self.world.driver.open(self.world.device)
        self._golden = [each for each in golden_frames() if each[14] & 8]
        self._sent: deque[Sent] = deque(maxlen=64)
        self._data: dict[Bio, bytearray] = {}
        self._failing: set[Bio] = set()
        self._repeat_lba: set[bytes] = set()
        """MAC addresses of targets that have repeated the LBA of a request (P35)."""
        self._other_since: dict[bytes, float] = {}
        self.verdicts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.frames = 0

    # --- users ------------------------------------------------------------------------

    def _submit(self) -> None:
        rng, world = self._rng, self.world
        room = min(SECTORS, world.device.ssize) - 20
        if room <= 0:
            self._recover()
            return
        sector, count = rng.randrange(room), rng.randint(1, 20)
        op = rng.choice([Op.READ, Op.READ, Op.WRITE, Op.WRITE, Op.FLUSH, Op.DISCARD])
        if op is Op.DISCARD:
            bio = Bio(op, sector, self._end_early, length=count * SECTOR)
        else:
            memory = bytearray(count * SECTOR if op is not Op.FLUSH else 0)
            fua = op is Op.WRITE and rng.random() < 0.3
            bio = bio_for(op, sector, memory, self._end_early, fua=fua)
        self._data[bio] = bytearray(bio.size if op is Op.READ else 0)
        world.submit(bio)
        bio.end_io = world.ended.append

    def _end_early(self, bio: Bio) -> None:
        # A response has just changed the device: it has no TRIM, or is smaller.
        assert bio.error is not None
        del self._data[bio]
        self.ended["rejected"] += 1

    def _recover(self) -> None:
        """Announce the target and answer IDENTIFY, to restore the device."""
        world = self.world
        world.deliver(world.target.announce())
        for sent in world.take():
            if sent.registers.command == 0xEC:
                world.deliver(world.target.answer(sent.raw), sent.port)
            else:
                self._sent.append(sent)

    # --- the network ------------------------------------------------------------------

    def step(self) -> None:
        """Deliver one frame and check the driver's reaction."""
        world, rng = self.world, self._rng
        if len(self._data) < BIOS:
            self._submit()
        if rng.random() < 0.02:
            world.wait(rng.choice([0.001, 0.05, 0.6]))
        if rng.random() < 0.001:
            world.target.supports_fua = not world.target.supports_fua
            self._recover()
        self._sent.extend(world.take())
        if not self._sent:
            world.wait(1)
            self._sent.extend(world.take())
        world.now += 0.0001
        frame = self._make()
        out = {**world.device.factive, **world.device.rexmitq}
        verdict, f = self._expected_effect(frame, out)
        self._record_expected(verdict, f, frame)
        bio = f.buf.bio if f is not None and f.buf is not None else None
        tag = f.tag if f is not None else None
        others = _commands({t: other for t, other in out.items() if t != tag})
        self.frames += 1
        self.verdicts[verdict] += 1
        world.deliver(frame, rng.randrange(2))
        self._check(tag, others, bio)

    def _choose(self) -> Sent:
        """Choose a frame to answer, usually one that is outstanding."""
        device = self.world.device
        outstanding = [s for s in self._sent if s.tag in device.factive]
        stale = not outstanding or self._rng.random() < 0.2
        return self._rng.choice(self._sent if stale else outstanding)

    def _make(self) -> bytes:
        rng = self._rng
        sent = self._choose()
        kind = rng.random()
        if kind < 0.02:
            return rng.randbytes(rng.choice(LENGTHS))
        if kind < 0.03:
            frame = bytearray(self._second.announce(rng.choice([0, sent.tag])))
            return self._damage(frame)
        if kind < 0.1:
            frame = bytearray(rng.choice(self._golden))
            frame[16:19] = struct.pack("!HB", *ADDRESS)
            frame[6:12] = rng.choice([self.world.target.mac, self._second.mac])
            frame[20:24] = struct.pack("!I", sent.tag)
            return bytes(frame) if rng.random() < 0.5 else self._damage(frame)
        target = rng.choice([self.world.target, self._second])
        frame = target.answer(sent.raw)
        if kind < 0.35:
            return bytes(frame)
        if kind < 0.4:
            return bytes(target.refuse(sent.raw, rng.randrange(9)))
        return self._damage(frame)

    def _damage(self, frame: bytearray) -> bytes:
        rng = self._rng
        damages: list[Callable[[bytearray], None]] = [
            self._damage_field,
            self._damage_field,
            self._damage_bytes,
            self._damage_length,
            self._damage_sender,
            self._damage_tag,
        ]
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            rng.choice(damages)(frame)
        if frame[19:20] == b"\1":
            # An announcement would add its sender as a target; keep it at two.
            frame[6:12] = self._second.mac
        return bytes(frame)

    def _damage_field(self, frame: bytearray) -> None:
        offset, bits = self._rng.choice(FIELDS)
        if offset < len(frame):
            frame[offset] ^= bits

    def _damage_bytes(self, frame: bytearray) -> None:
        if len(frame) > 12:
            at = self._rng.randrange(12, len(frame))
            frame[at] = self._rng.randrange(256)

    def _damage_length(self, frame: bytearray) -> None:
        length = self._rng.choice([*LENGTHS, len(frame) - 1, len(frame) + 512])
        frame[:] = frame[: max(0, length)].ljust(max(0, length), b"\xee")

    def _damage_sender(self, frame: bytearray) -> None:
        frame[6:12] = FOREIGN_MAC[: len(frame[6:12])]

    def _damage_tag(self, frame: bytearray) -> None:
        tag = self._rng.choice(self._sent).tag ^ self._rng.choice([0, 0, 1, 1 << 31])
        frame[20:24] = struct.pack("!I", tag)[: len(frame[20:24])]

    # --- expected effects -------------------------------------------------------------

    def _expected_effect(
        self, frame: bytes, out: dict[int, Frame]
    ) -> tuple[str, Frame | None]:
        """Return the effect of a frame by the rules, and the frame that it ends."""
        if len(frame) < 24 or frame[12:14] != b"\x88\xa2" or not frame[14] & 8:
            return "ignored", None
        shelf, slot, command, tag = struct.unpack_from("!HBBI", frame, 16)
        macs = [target.addr for target in self.world.device.targets]
        f = out.get(tag)
        if (shelf, slot) != ADDRESS or command or frame[6:12] not in macs or f is None:
            return "ignored", None
        verdict = self._effect_on(frame, f)
        return verdict, None if verdict == "ignored" else f

    def _effect_on(self, frame: bytes, f: Frame) -> str:
        if frame[14] & 4:
            may_wait = f.buf is not None or f.is_probe
            # The disk is unavailable: the frame will be sent again.
            return "ignored" if may_wait and frame[15] == 3 else "failed"
        if len(frame) < ATA_DATA:
            return "ignored"
        if frame[27] & 0xA9:
            unsupported = f.fua and (frame[27], frame[25]) == ABORTED
            return "unsupported" if unsupported else "failed"
        is_runt = f.op is Op.READ and len(frame) < ATA_DATA + f.length
        if is_runt and f.attempts < RUNT_RETRIES:
            return "ignored"
        if f.op in (Op.READ, Op.WRITE) and self._is_of_other_sectors(frame, f):
            return "ignored"
        return "failed" if is_runt else "done"

    def _is_of_other_sectors(self, frame: bytes, f: Frame) -> bool:
        mac, now, device = f.target.addr, self.world.now, self.world.device
        lba = int.from_bytes(frame[28:34], "little")
        if (lba if device.ext else lba & 0xFFF_FFFF) == f.sector:
            self._other_since.pop(mac, None)
            if f.sector:
                self._repeat_lba.add(mac)
        elif mac in self._repeat_lba:
            since = self._other_since.setdefault(mac, now)
            if now <= since + device.frame_lifetime:
                return True
            self._repeat_lba.remove(mac)
        return False

    def _record_expected(self, verdict: str, f: Frame | None, frame: bytes) -> None:
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
            self.ended["failed" if failing else "succeeded"] += 1


def _commands(frames: dict[int, Frame]) -> set[tuple[int, int, int]]:
    """Return the outstanding commands, regardless of their tags."""
    each = (f for f in frames.values() if not f.is_probe)
    return {(id(f), id(f.buf), f.sector) for f in each}
