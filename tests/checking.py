"""The conformance suite on our target, without a link."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aoe.config import Config
from initiator.check.model import Needs, Result
from initiator.check.runner import Session, drive
from initiator.check.subject import Subject, probe
from initiator.check.suite import CHECKS
from target.disks.memory import MemoryDisk
from tests.asking import CLIENT, SECTORS, TARGET, ask, make_target
from tests.mutants import Mutant

if TYPE_CHECKING:
    from collections.abc import Iterable

    from initiator.check.model import Check
    from target.protocol.engine import Engine

EVERYTHING = ~Needs.NOTHING
SCRATCH = 8


class MutatedExchange:
    """Passes requests to a target and returns responses, both altered by a mutant."""

    def __init__(self, target: Engine, mutant: Mutant) -> None:
        self.target = target
        self.request_count = 0
        self._mutant = mutant

    def __call__(self, request: bytes, *, is_silence: bool) -> bytes:
        del is_silence
        self.request_count += 1
        response = ask(self.target, self._mutant.rewrite(request))
        return self._mutant.alter(request, response)


def subject_of(target: Engine, exchange: MutatedExchange) -> Subject:
    """Return a probed subject for a target."""
    mtu = target.frame_limit - 14
    plain = Subject(target.export.address, TARGET, CLIENT, mtu, Config())
    config = Config.unpack_from(ask(target, plain.config()))
    t = Subject(target.export.address, TARGET, CLIENT, mtu, config)
    assert drive(probe(t), t, exchange) is None
    if t.identity is not None:
        t.scratch = range(t.identity.sectors - SCRATCH, t.identity.sectors)
    return t


def check(
    mutant: Mutant | None = None,
    *,
    checks: Iterable[Check] = CHECKS,
    allowed: Needs = EVERYTHING,
    read_only: bool = False,
    mtu: int = 1500,
) -> list[Result]:
    """Run checks on our target, or on a mutant of it."""
    disk = MemoryDisk(bytes(range(256)) * (SECTORS * 2))
    disk.read_only = read_only
    exchange = MutatedExchange(make_target(disk, mtu), mutant or Mutant(""))
    session = Session(subject_of(exchange.target, exchange), exchange, allowed)
    return list(session.run(checks))
