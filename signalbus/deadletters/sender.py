"""Sending what replays have claimed, each at its rate, until nothing of it waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..errors import BrokerError
from .pace import pace_of

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0

#: Sends up to so many dead letters of a replay, and returns how many it took on; 0: nothing of it waits any more.
Send = Callable[[str, int], Awaitable[int]]


async def send_all(replay: str, rate: float, send: Send) -> None:
    """Send a replay. Trouble of the broker or the store is waited out, with growing pauses: what waits is safe."""
    pace = pace_of(rate)
    clock = asyncio.get_running_loop().time
    pause, due = FIRST_PAUSE, clock()
    while True:
        try:
            taken = await send(replay, pace.batch)
        except BrokerError as error:
            log.warning("replay %s pauses: %s", replay, error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            continue
        if not taken:
            return
        pause = FIRST_PAUSE
        # From when the batch was due, so that a slow store does not slow the replay; never to catch up in a burst.
        due = max(due + taken * pace.seconds / pace.batch, clock())
        await asyncio.sleep(due - clock())
