from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from initiator.driver.timing import KernelTiming, PromptTiming, PromptWindow, Window

MILLISECOND = 0.001


def window(nframes: int, **values: int) -> Window:
    made = Window(nframes)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def fields(of: Window) -> tuple[int, int, int]:
    return of.maxout, of.ssthresh, of.next_cwnd


# --- the kernel's window --------------------------------------------------------------


@pytest.mark.parametrize(
    ("nframes", "half"), [(0, 0), (1, 0), (2, 1), (3, 1), (16, 8), (64, 32)]
)
def test_k15_a_new_window_is_half_the_buffer_count(nframes: int, half: int) -> None:
    assert fields(Window(nframes)) == (half, half, nframes)


def test_k41_a_window_is_open_while_nout_is_below_maxout() -> None:
    assert window(16, nout=7).is_open
    assert not window(16, nout=8).is_open
    assert not window(1).is_open


def test_k45_reset_leaves_a_window_of_one_frame() -> None:
    each = window(16, maxout=12, ssthresh=3, next_cwnd=5)
    each.reset()
    assert fields(each) == (1, 8, 16)


@pytest.mark.parametrize(
    ("nframes", "after"), [(16, (8, 8, 16)), (8, (8, 8, 16)), (7, (1, 3, 7))]
)
def test_k15_a_buffer_count_below_maxout_resets_the_window(
    nframes: int, after: tuple[int, int, int]
) -> None:
    each = Window(16)
    each.resize(nframes)
    assert fields(each) == after
    assert each.nframes == nframes


@pytest.mark.parametrize(
    ("maxout", "ssthresh", "after"), [(8, 8, (1, 4)), (3, 8, (1, 1)), (1, 4, (1, 4))]
)
def test_k45_a_loss_collapses_the_window_and_halves_ssthresh_once(
    maxout: int, ssthresh: int, after: tuple[int, int]
) -> None:
    each = window(16, maxout=maxout, ssthresh=ssthresh)
    each.on_loss(1, 0.0, 1.0)
    assert (each.maxout, each.ssthresh) == after


@pytest.mark.parametrize(
    ("before", "nout", "after"),
    [
        pytest.param((16, 8, 5), 16, (16, 8, 5), id="full"),
        pytest.param((3, 8, 5), 1, (4, 8, 5), id="below the threshold"),
        pytest.param((8, 8, 5), 7, (8, 8, 5), id="not all out"),
        pytest.param((8, 8, 5), 8, (8, 8, 4), id="counts down"),
        pytest.param((8, 8, 1), 8, (8, 8, 0), id="compares before it counts"),
        pytest.param((8, 8, 0), 8, (9, 8, 9), id="due"),
        pytest.param((1, 0, 0), 1, (2, 0, 2), id="threshold 0"),
    ],
)
def test_k45_a_response_widens_the_window(
    before: tuple[int, int, int], nout: int, after: tuple[int, int, int]
) -> None:
    maxout, ssthresh, next_cwnd = before
    each = window(16, maxout=maxout, ssthresh=ssthresh, next_cwnd=next_cwnd, nout=nout)
    each.on_response()
    assert fields(each) == after


def test_k45_widening_from_8_to_9_of_16_takes_17_responses() -> None:
    each = window(16, nout=8)
    responses = 0
    while each.maxout == 8:
        each.on_response()
        responses += 1
    assert responses == 17


@given(st.integers(0, 64), st.lists(st.sampled_from("ladr"), max_size=200))
def test_k45_a_window_never_exceeds_the_buffer_count(
    nframes: int, events: list[str]
) -> None:
    each = Window(nframes)
    for event in events:
        each.nout = each.maxout
        if event == "l" and each.nout:
            each.on_loss(1, 0.0, 1.0)
        elif event == "d":
            each.resize(each.nframes // 2)
        elif event == "r":
            each.reset()
        else:
            each.on_response()
        assert 0 <= each.maxout <= max(each.nframes, 1)


# --- the kernel's estimator -----------------------------------------------------------


def test_k47_the_initial_rto_is_16_5_seconds() -> None:
    assert KernelTiming().timeout(0) == pytest.approx(16.5)


@pytest.mark.parametrize(
    ("samples", "rto"),
    [
        (1, "14.75"),
        (5, "9.66"),
        (10, "6.13"),
        (20, "3.33"),
        (50, "2.12"),
        (100, "1.73"),
        (200, "1.17"),
        (500, "0.363"),
        (1000, "0.053"),
        (2000, "0.0030"),
    ],
)
def test_k47_rto_by_number_of_samples_of_1_ms(samples: int, rto: str) -> None:
    timing = KernelTiming()
    for _ in range(samples):
        timing.sample(MILLISECOND)
    digits = len(rto.partition(".")[2])
    assert f"{timing.timeout(0):.{digits}f}" == rto


def test_k46_the_gains_are_1_256_and_1_8() -> None:
    timing = KernelTiming()
    timing.sample(0.506)
    assert timing.rttavg >> 8 == 251_000
    assert timing.rttdev >> 3 == 2_000_000 + (256_000 - 2_000_000) // 8


def test_k47_the_rto_is_never_0() -> None:
    timing = KernelTiming()
    timing.rttavg = timing.rttdev = 0
    assert timing.timeout(0) == pytest.approx(1e-6)


def test_k48_there_is_no_back_off() -> None:
    timing = KernelTiming()
    assert {timing.timeout(attempts) for attempts in range(12)} == {timing.timeout(0)}


def test_k48_the_timer_runs_every_100_ms() -> None:
    assert KernelTiming().tick == 0.1


def test_k59_a_late_response_inflates_the_estimate() -> None:
    timing = KernelTiming()
    for _ in range(2000):
        timing.sample(MILLISECOND)
    timing.sample_late(65.0)
    assert timing.timeout(0) > 60


def test_k20_reset_restores_the_initial_estimate() -> None:
    timing = KernelTiming()
    timing.sample(MILLISECOND)
    timing.reset()
    assert timing.timeout(0) == pytest.approx(16.5)


def test_k16_a_target_with_one_buffer_has_a_window_of_0() -> None:
    assert not KernelTiming().window(1).is_open


# --- prompt ---------------------------------------------------------------------------


def timing_after(rtt: float, samples: int = 100) -> PromptTiming:
    timing = PromptTiming()
    for _ in range(samples):
        timing.sample(rtt)
    return timing


def test_prompt_initial_rto_is_250_ms() -> None:
    assert PromptTiming().timeout(0) == 0.25


def test_prompt_rto_is_three_round_trips_after_the_first_sample() -> None:
    assert timing_after(0.02, 1).timeout(0) == pytest.approx(0.06)


@pytest.mark.parametrize("rtt", [1e-6, 1e-4, 1e-3])
def test_prompt_rto_is_at_least_20_ms(rtt: float) -> None:
    assert timing_after(rtt).timeout(0) == 0.02


def test_prompt_rto_approaches_a_constant_round_trip_time() -> None:
    assert timing_after(0.1).timeout(0) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(("attempts", "doubled"), [(1, 0.04), (2, 0.08), (4, 0.32)])
def test_prompt_rto_doubles_with_10_percent_of_jitter(
    attempts: int, doubled: float
) -> None:
    timing = timing_after(MILLISECOND)
    timeouts = [timing.timeout(attempts) for _ in range(200)]
    assert all(0.9 * doubled <= each <= 1.1 * doubled for each in timeouts)
    assert max(timeouts) - min(timeouts) > 0.1 * doubled


@pytest.mark.parametrize("attempts", [6, 10, 1000])
def test_prompt_back_off_is_limited_to_500_ms(attempts: int) -> None:
    assert 0.45 <= timing_after(MILLISECOND).timeout(attempts) <= 0.5
    assert PromptTiming().timeout(attempts) == 0.5


@pytest.mark.parametrize("attempts", [0, 1, 10])
def test_prompt_rto_of_a_slow_target_exceeds_500_ms(attempts: int) -> None:
    assert timing_after(3.0).timeout(attempts) == pytest.approx(3.0, rel=0.01)


def test_prompt_late_responses_are_not_sampled() -> None:
    timing = timing_after(MILLISECOND)
    timing.sample_late(60.0)
    assert timing.timeout(0) == 0.02


def test_prompt_reset_restores_the_initial_estimate() -> None:
    timing = timing_after(MILLISECOND)
    timing.reset()
    assert timing.timeout(0) == 0.25


def test_prompt_has_no_tick() -> None:
    assert PromptTiming().tick == 0


@pytest.mark.parametrize("nframes", [0, 1])
def test_i4_prompt_sends_to_a_target_that_announces_0_buffers(nframes: int) -> None:
    each = PromptTiming().window(nframes)
    assert each.is_open
    each.resize(nframes)
    assert each.is_open
    each.on_loss(1, 0.0, 1.0)
    each.on_loss(2, 2.0, 3.0)
    assert each.is_open


def test_prompt_window_is_halved_once_for_a_burst() -> None:
    each = PromptWindow(64)
    for sent in (1.0, 1.1, 1.2):
        each.on_loss(1, sent, 1.3)
    assert (each.maxout, each.ssthresh) == (16, 16)


def test_prompt_window_is_halved_again_for_frames_sent_since() -> None:
    each = PromptWindow(64)
    each.on_loss(1, 1.0, 1.3)
    each.on_loss(1, 1.3, 1.6)
    assert each.maxout == 16
    each.on_loss(1, 1.4, 1.7)
    assert each.maxout == 8


def test_prompt_window_collapses_when_a_frame_is_lost_twice() -> None:
    each = PromptWindow(64)
    each.on_loss(1, 1.0, 1.3)
    each.on_loss(2, 1.3, 1.8)
    assert (each.maxout, each.ssthresh) == (1, 8)


def test_prompt_window_grows_as_the_kernels_does() -> None:
    each = PromptWindow(64)
    each.on_loss(1, 1.0, 1.3)
    each.on_loss(2, 1.3, 1.8)
    for _ in range(7):
        each.on_response()
    assert each.maxout == 8


@given(
    st.integers(0, 64),
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 9)), max_size=99),
)
def test_prompt_window_is_at_least_one_frame(
    nframes: int, events: list[tuple[int, float]]
) -> None:
    each = PromptWindow(nframes)
    for attempts, sent in events:
        if attempts:
            each.on_loss(attempts, sent, sent + 0.5)
        else:
            each.on_response()
        assert 1 <= each.maxout <= max(nframes, 1)
