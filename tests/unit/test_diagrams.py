from __future__ import annotations

import pytest

from initiator.driver.aoedev import State
from initiator.driver.options import Options
from scripts.diagrams import DOCUMENT, OPTIONS, Transition, device_transitions, redraw


def test_states_md_shows_the_transitions_of_the_driver() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert redraw(text) == text, "run scripts/diagrams to generate it again"
    assert text.count("stateDiagram") == 2


@pytest.mark.parametrize("options", OPTIONS)
def test_every_device_state_is_reached(options: str) -> None:
    transitions = device_transitions(OPTIONS[options])
    states = {each.after.removesuffix(", open") for each in transitions}
    assert states == {state.value for state in State}


def test_k56_only_by_default_an_open_device_is_up_again_without_a_close() -> None:
    revival = Transition("down,closewait, open", "announcement", "up, open")
    assert revival in device_transitions(Options())
    assert revival not in device_transitions(Options.kernel())
