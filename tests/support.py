"""Waiting in tests: on events where there are any, else by asking again until a deadline."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

T = TypeVar("T")

TIMEOUT_SECONDS = 10.0
INTERVAL_SECONDS = 0.02


async def eventually(
    predicate: Callable[[], T | Awaitable[T]],
    timeout: float = TIMEOUT_SECONDS,
    *,
    interval: float = INTERVAL_SECONDS,
    message: str = "",
) -> T:
    """Return the first true value of `predicate`; fail with its last value after `timeout` seconds.

    For what only an outside party knows (a broker's queue length, a process' death). Prefer an event.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while True:
        answer = predicate()
        value = cast(T, await answer if inspect.isawaitable(answer) else answer)
        if value:
            return value
        if loop.time() >= deadline:
            raise AssertionError(_complaint(message, timeout, value))
        await asyncio.sleep(interval)


def eventually_sync(
    predicate: Callable[[], T],
    timeout: float = TIMEOUT_SECONDS,
    *,
    interval: float = INTERVAL_SECONDS,
    message: str = "",
) -> T:
    """`eventually` for tests without an event loop."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(message, timeout, value))
        time.sleep(interval)
    return value


def _complaint(message: str, timeout: float, value: object) -> str:
    return f"{message or 'the condition'} did not come true within {timeout:g} s (last value: {value!r})"
