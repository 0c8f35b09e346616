"""Looks at the broker and the stores that are shared: however many ask, each is made once in a while.

So scrapes, pages and streams cannot hurt the broker. A look that took long is kept longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from ..brokers.base import QueueInfo, SessionStatus
from ..deadletters import LetterGroup, LetterQuery, LetterState
from ..errors import BrokerError, SignalBusError
from ..inspection import Inspection
from ..trace.listing import StoreStats
from .rates import Tally

T = TypeVar("T")

SECONDS = 1.0  # how long an answer is good
GROUPS_SECONDS = 3.0  # counting dead letters reads all of them
SHARE = 0.05  # of the time that one look may take, at most
DEADLINE = 10.0  # seconds for one look
ALL_STATES = frozenset(LetterState)


class Look(Generic[T]):
    """One question, asked at most every ``seconds``; whoever comes meanwhile gets the same answer, or error."""

    def __init__(
        self, ask: Callable[[], Awaitable[T]], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._seconds = seconds
        self._clock = clock
        self._lock = asyncio.Lock()
        self._good_until = -1.0
        self._answer: T | SignalBusError | None = None

    async def __call__(self) -> T:
        """Return the answer. Raises what the one who asked got: a `BrokerError` mostly."""
        async with self._lock:
            if self._answer is None or self._clock() >= self._good_until:
                await self._renew()
            answer = self._answer
        assert answer is not None
        if isinstance(answer, SignalBusError):
            raise answer.with_traceback(None)  # or it would grow with everybody who gets it
        return answer

    async def _renew(self) -> None:
        began = self._clock()
        try:
            async with asyncio.timeout(DEADLINE):
                self._answer = await self._ask()
        except SignalBusError as error:
            self._answer = error
        except TimeoutError:
            self._answer = BrokerError(f"no answer within {DEADLINE:g} s")
        now = self._clock()
        self._good_until = now + max(self._seconds, (now - began) / SHARE)


class Looks:
    """The looks at one inspection."""

    def __init__(self, inspection: Inspection) -> None:
        bus = self._bus = inspection.bus
        self.tally = Tally()  # of what sessions said, at each look at them
        self.queues: Look[Sequence[QueueInfo]] = Look(lambda: bus.broker.queues(DEADLINE), SECONDS)
        self.sessions: Look[Sequence[SessionStatus]] = Look(self._sessions, SECONDS)
        self.store: Look[StoreStats] = Look(inspection.traces.stats, SECONDS)
        self.groups: Look[Sequence[LetterGroup]] = Look(
            lambda: inspection.letters.groups(LetterQuery(states=ALL_STATES)), GROUPS_SECONDS
        )

    async def _sessions(self) -> Sequence[SessionStatus]:
        found = await self._bus.broker.sessions(DEADLINE)
        self.tally.look(found, time.monotonic())
        return found
