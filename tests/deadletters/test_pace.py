"""How fast a replay sends."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbus.deadletters.pace import MAX_RATE, pace_of
from signalbus.deadletters.sender import send_all
from signalbus.errors import BrokerUnavailable, ConfigError


@given(st.floats(0.001, MAX_RATE))
def test_a_pace_is_the_rate_in_small_batches(rate: float) -> None:
    pace = pace_of(rate)
    assert pace.batch / pace.seconds == pytest.approx(rate)
    assert 1 <= pace.batch <= 100
    assert pace.batch == 1 or pace.batch <= rate / 10


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf, MAX_RATE * 1.01])
def test_a_rate_that_cannot_be_kept_is_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="at most 10000 a second"):
        pace_of(rate)


async def test_no_second_has_more_than_the_rate_and_one_batch() -> None:
    left, at = 100, list[float]()
    clock = asyncio.get_running_loop().time

    async def send(_: str, limit: int) -> int:
        nonlocal left
        taken = min(limit, left)
        left -= taken
        at.extend([clock()] * taken)
        return taken

    await send_all("r", 100.0, send)
    assert len(at) == 100
    for start in at:
        assert sum(start <= each < start + 0.5 for each in at) <= 50 + 10
    assert at[-1] - at[0] >= 0.85


async def test_a_batch_that_was_not_full_is_waited_for_as_long_as_it_was() -> None:
    taken = iter([1] * 50 + [0])
    started = asyncio.get_running_loop().time()

    async def send(_: str, limit: int) -> int:
        assert limit == 100
        return next(taken)

    await send_all("r", 1_000.0, send)
    # 0.05 s, and however long this machine takes to wake up; for whole batches it would be 5 s.
    assert asyncio.get_running_loop().time() - started < 2.5


async def test_trouble_of_the_broker_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.deadletters.sender.FIRST_PAUSE", 0.001)
    answers: list[int | BrokerUnavailable] = [5, BrokerUnavailable("away"), BrokerUnavailable("away"), 5, 0]

    async def send(_: str, __: int) -> int:
        answer = answers.pop(0)
        if isinstance(answer, BrokerUnavailable):
            raise answer
        return answer

    await send_all("r", 10_000.0, send)
    assert answers == []


async def test_anything_else_is_not_swallowed() -> None:
    async def send(_: str, __: int) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await send_all("r", 10.0, send)
