"""A link whose interface takes some frames and never others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from aoe.errors import AccessError
from aoe.link import Link, LinkStatistics
from aoe.netns import Switch, Wire
from tests.frames import arriving, frame_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("rings", [True, False], ids=["rings", "plain"])
def test_a_frame_that_is_never_taken_holds_up_no_other(
    links: Callable[..., Link], *, rings: bool
) -> None:
    try:
        switch = Switch(9000)
    except AccessError as error:
        pytest.skip(str(error))
    with switch:
        here, there = switch.add_host(), switch.add_host(Wire.target_mac)
        switch.narrow(here, 1500)
        sender, receiver = links(here, rings=rings), links(there)
        for length in (9014, 60, 8000, 1514):
            slot = sender.reserve()
            assert slot is not None
            slot[:length] = frame_of(length)
            sender.commit(length)
        for _ in range(3):
            sender.flush()
        assert arriving(receiver) == [frame_of(60), frame_of(1514)]
        assert sender.statistics() == LinkStatistics(sent=2, unsent=2)
        assert sender.send(frame_of(100))
        assert arriving(receiver) == [frame_of(100)]
