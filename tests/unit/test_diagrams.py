from __future__ import annotations

import pytest

from initiator.driver.aoedev import State
from initiator.driver.options import Options
from scripts.diagrams import DOCUMENT, MANNERS, Arrow, device_arrows, redraw


def test_states_md_draws_what_the_driver_does() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert redraw(text) == text, "scripts/diagrams draws it anew"
    assert text.count("stateDiagram") == 2


@pytest.mark.parametrize("manners", MANNERS)
def test_no_state_of_a_device_is_missing(manners: str) -> None:
    arrows = device_arrows(MANNERS[manners])
    states = {arrow.after.removesuffix(", open") for arrow in arrows}
    assert states == {state.value for state in State}


def test_k56_only_ours_is_up_again_without_a_close() -> None:
    back = Arrow("down,closewait, open", "it announces itself", "up, open")
    assert back in device_arrows(Options())
    assert back not in device_arrows(Options.kernel())
