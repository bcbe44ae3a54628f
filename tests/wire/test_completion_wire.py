"""Shell completion of the addresses and targets that are running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.completing import completed
from tests.serving import serving

if TYPE_CHECKING:
    from pathlib import Path

    from aoe.net.netns import Wire

pytestmark = pytest.mark.netns


def test_addresses_and_targets_are_completed(wire: Wire, tmp_path: Path) -> None:
    here, there = wire.target.command([]), wire.initiator.command([])
    image = tmp_path / "disk.img"
    with serving(wire, image, "--create", "1M", "--force") as process:
        for words in (("stat", "-i", "aoe0"), ("read",), ("copy", "x.img")):
            assert completed("aoe", *words, "e", before=there) == ["e7.3"]
            assert completed("aoe", *words, "e8", before=there) == []
        for command in ("clear-mask", "clear-config", "clear-reserve"):
            assert completed("aoe-target", command, "", before=here) == ["e7.3"]
        pid = str(process.pid)
        assert completed("aoe-target", "stop", "--pid", "", before=here) == [pid]
        assert completed("aoe-target", "stop", "--pid", "", before=there) == []
    assert completed("aoe-target", "clear-mask", "", before=here) == []
