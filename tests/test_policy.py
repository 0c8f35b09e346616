"""When to try again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbus import ConfigError, Retry, RetryPolicy

SECOND = timedelta(seconds=1)


def test_the_delay_grows_by_the_multiplier_up_to_the_cap() -> None:
    policy = RetryPolicy(initial=SECOND, multiplier=3, max_delay=10 * SECOND, jitter=False)
    assert [policy.delay_after(n, 0.5).total_seconds() for n in (1, 2, 3, 4, 5)] == [1, 3, 9, 10, 10]


@given(attempt=st.integers(1, 10**9), random=st.floats(0, 1, exclude_max=True))
def test_jitter_draws_between_zero_and_the_cap_of_the_attempt(attempt: int, random: float) -> None:
    jittered, plain = RetryPolicy(), RetryPolicy(jitter=False)
    cap = plain.delay_after(attempt, random)
    assert timedelta(0) <= jittered.delay_after(attempt, random) <= cap <= plain.max_delay
    assert jittered.delay_after(attempt, 0.0) == timedelta(0)
    assert jittered.delay_after(attempt, 0.5) == timedelta(seconds=cap.total_seconds() * 0.5)


def test_a_huge_attempt_number_does_not_overflow() -> None:
    assert RetryPolicy(jitter=False).delay_after(10**6, 0).total_seconds() == 600
    assert RetryPolicy(initial=timedelta(0), jitter=False).delay_after(10**6, 0) == timedelta(0)


class Base(Exception): ...


class Derived(Base): ...


class Other(Derived): ...


def test_the_rule_of_the_nearest_base_class_wins() -> None:
    base, derived = RetryPolicy(max_attempts=2), RetryPolicy(max_attempts=3)
    policy = RetryPolicy(rules={Base: base, Derived: derived})
    assert policy.for_error(Base) is base
    assert policy.for_error(Derived) is derived
    assert policy.for_error(Other) is derived
    assert policy.for_error(KeyError) is policy
    assert policy.for_error(Retry) is policy


def test_never_holds_for_derived_exceptions_too() -> None:
    policy = RetryPolicy(never=(LookupError, Derived))
    assert [policy.gives_up_on(kind) for kind in (KeyError, Other, Base, ValueError)] == [True, True, False, False]
    assert not RetryPolicy().gives_up_on(Exception)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"initial": timedelta(seconds=-1)},
        {"max_delay": timedelta(seconds=-1)},
        {"multiplier": 0.5},
        {"multiplier": float("nan")},
    ],
    ids=str,
)
def test_a_policy_that_cannot_work_names_its_setting(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        RetryPolicy(**settings)
