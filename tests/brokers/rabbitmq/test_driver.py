"""Calls to the driver: one kind of error, and cancellations that are told apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from aiormq import exceptions

from signalbus.brokers.rabbitmq.driver import DriverFailure, call


async def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (exceptions.ChannelNotFoundEntity("no queue"), 404),
        (exceptions.ChannelPreconditionFailed("other arguments"), 406),
        (exceptions.ChannelAccessRefused("no right"), 403),
        (exceptions.ConnectionClosed(320, "CONNECTION_FORCED"), 320),
        (exceptions.ProbableAuthenticationError("ACCESS_REFUSED"), 403),
        (exceptions.ChannelInvalidStateError("closed"), None),
        (ConnectionResetError(104, "reset"), None),
        (Exception(), None),
    ],
)
async def test_whatever_the_driver_raises_is_a_failure_with_the_brokers_code(
    error: Exception, code: int | None
) -> None:
    with pytest.raises(DriverFailure) as caught:
        await call(_raise(error), 1)
    assert caught.value.code == code
    assert caught.value.reason


async def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    """The driver cancels whoever waits for a connection that it gives up."""
    with pytest.raises(DriverFailure, match="given up"):
        await call(_raise(asyncio.CancelledError()), 1)


async def test_a_call_ends_at_its_deadline() -> None:
    with pytest.raises(DriverFailure, match=r"no answer within 0\.0 s"):
        await call(asyncio.Event().wait(), 0.01)


async def _swallow(ending: Callable[[], Awaitable[None]]) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await ending()


@pytest.mark.parametrize("error", [None, exceptions.ProbableAuthenticationError("x"), TimeoutError()])
async def test_a_real_cancellation_passes_even_if_the_driver_swallows_it(error: Exception | None) -> None:
    async def ending() -> None:
        if error is not None:
            raise error

    task = asyncio.create_task(call(_swallow(ending), 10))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=1)
    assert task.cancelled()
