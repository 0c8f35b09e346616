"""The delay ladder: pure."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbus.brokers.rabbitmq import delays


def test_a_delay_is_made_of_powers_of_two_longest_first() -> None:
    assert delays.plan(13).steps == (8, 4, 1)
    assert delays.plan(13).rest == 0


def test_a_short_delay_is_all_rest_and_a_long_one_has_none() -> None:
    assert delays.plan(0.3) == delays.Plan((), 0.3)
    assert delays.plan(1000.7).rest == 0


def test_no_delay_needs_no_step() -> None:
    for seconds in (0.0, -1.0, math.nan):
        assert delays.plan(seconds) == delays.NO_DELAY


@given(st.floats(min_value=0.001, max_value=2 * delays.LONGEST_STEP - 1))
def test_a_delay_takes_at_most_four_steps_and_is_kept_within_a_sixteenth(seconds: float) -> None:
    plan = delays.plan(seconds)
    assert len(plan.steps) <= 4
    assert all(step in delays.VALID_STEPS for step in plan.steps)
    assert 0 <= plan.rest < 1
    assert abs(plan.seconds - seconds) <= max(seconds / 16, 0.001)


@given(st.floats(min_value=2 * delays.LONGEST_STEP, allow_infinity=True, allow_nan=False))
def test_a_very_long_delay_repeats_the_longest_step_up_to_a_year(seconds: float) -> None:
    plan = delays.plan(seconds)
    assert len(plan.steps) <= 40
    assert plan.seconds <= delays.LONGEST_DELAY * 17 / 16
    assert plan.seconds >= min(seconds, delays.LONGEST_DELAY) * 15 / 16


@given(st.floats(min_value=0.001, max_value=1e9))
def test_a_plan_survives_its_header(seconds: float) -> None:
    plan = delays.plan(seconds)
    assert delays.parse(str(plan)) == plan


@given(st.one_of(st.text(), st.binary(), st.none(), st.integers(), st.lists(st.integers())))
def test_any_other_header_is_read_without_an_error(header: object) -> None:
    plan = delays.parse(header)
    assert all(step in delays.VALID_STEPS for step in plan.steps)
    assert 0 <= plan.rest < 1


@pytest.mark.parametrize("text", ["3", "8 x", "-1", "1e400", "nan", "inf", "0", "8 " * 1000])
def test_a_forged_plan_means_no_delay(text: str) -> None:
    assert delays.parse(text) == delays.NO_DELAY


def test_steps_are_done_one_after_the_other() -> None:
    plan = delays.plan(6.25)
    assert str(plan) == "4 2 0.250"
    assert str(plan.after_first()) == "2 0.250"
    assert plan.after_first().after_first() == delays.Plan((), 0.25)
