"""Ends of sessions as facts: every router hears of them, and the active one stores them.

The others keep what they hear for a while: the end of the active router is among it, and whatever ended between that
and the moment in which another one takes over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from ..errors import BrokerError
from ..ledger import Batch, Origin
from ..sessions import Down
from .store import RouterStore

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0  # before what the store could not do is tried again
KEPT_SECONDS = 300.0  # longer than any router takes to be found dead
MOST = 10_000  # that wait
TOGETHER = 200


class SessionEnds:
    """See the module. ``active`` says whether it is up to us to store; call `stir` when it may have changed."""

    def __init__(self, store: RouterStore, active: Callable[[], bool], clock: Callable[[], float]) -> None:
        self._store = store
        self._active = active
        self._clock = clock
        self._heard: deque[tuple[float, Down]] = deque(maxlen=MOST)  # the oldest give way
        self._stirred = asyncio.Event()

    def note(self, down: Down) -> None:
        """Take an end to be stored. Does not block."""
        now = self._clock()
        if not self._active():
            while self._heard and self._heard[0][0] < now - KEPT_SECONDS:
                self._heard.popleft()
        self._heard.append((now, down))
        self._stirred.set()

    def stir(self) -> None:
        """Look again whether it is up to us."""
        self._stirred.set()

    async def run(self) -> None:
        """Store what is heard while it is up to us, for ever."""
        while True:
            self._stirred.clear()
            while self._heard and self._active():
                if not await self._stored():
                    await asyncio.sleep(AGAIN_SECONDS)
            await self._stirred.wait()

    async def _stored(self) -> bool:
        some = [self._heard[index] for index in range(min(TOGETHER, len(self._heard)))]
        try:
            await asyncio.to_thread(self._store.append, [as_fact(down) for _, down in some])
        except BrokerError as error:
            log.warning("ends of sessions are not stored for now: %s", error)
            return False
        for each in some:
            if self._heard and self._heard[0] is each:  # it may have given way meanwhile
                self._heard.popleft()
        return True


def as_fact(down: Down) -> Batch:
    """Return the end of a session as a fact: the same one, whoever of several routers stores it."""
    row = ("session_down", down.at.timestamp(), down.session, down.reason.value, down.name, down.unsettled)
    return Batch(origin=Origin(recorder=f"end of {down.session}", session=down.session), first=1, rows=[row])
