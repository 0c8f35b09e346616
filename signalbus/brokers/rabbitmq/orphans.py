"""Requests that nobody has any more: their responder died, and there is no other.

A request queue goes with its last consumer, and takes with it what it holds. The broker tells nobody; so whenever a
session ends or a responder stops, and now and then, the queues of open requests are looked for.
"""

from __future__ import annotations

import asyncio
import logging

from ...errors import BrokerError, ConfigError
from ...sessions import Down
from ..base import AnswerKind
from .calls import Call, Calls
from .control import Control
from .inbox import Inbox
from .lane import Received
from .notes import Malformed, Note
from .observer import Observer
from .topology import Topology

log = logging.getLogger(__name__)

#: Seconds after an end: the broker tears the channels of a connection down in any order.
LOOKS = (0.0, 0.02, 0.1, 0.5)
SWEEP_SECONDS = 0.5
CHECK_SECONDS = 5.0


class Orphans:
    """Ends the requests whose responder is gone."""

    def __init__(self, topology: Topology, calls: Calls, control: Control, observer: Observer, inbox: Inbox) -> None:
        self._topology = topology
        self._calls = calls
        self._control = control
        self._observer = observer
        self._due: set[str] = set()  # types to look for; an empty one means all
        self._wake = asyncio.Event()
        observer.listen(self._on_down)
        inbox.on(Note.LEFT, self._on_left)

    def began(self) -> None:
        """Note that there are requests."""
        self._wake.set()

    async def run(self) -> None:
        """Look when there is reason to, until cancelled."""
        while True:
            await self._wait()
            types, self._due = self._due, set()
            try:
                if not self._observer.observing:
                    await self._observer.observe(asyncio.get_running_loop().time() + CHECK_SECONDS)
                await self._look(types)
            except (BrokerError, ConfigError) as error:
                log.debug("the queues of open requests cannot be looked for: %s", error)

    async def _wait(self) -> None:
        """Wait for a reason, or, with requests open, for the time of a sweep."""
        sweep = any(True for _ in self._calls.open)
        try:
            async with asyncio.timeout(SWEEP_SECONDS if sweep else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _look(self, types: set[str]) -> None:
        clock = asyncio.get_running_loop().time
        old = clock() - SWEEP_SECONDS
        due = [asked for asked in self._calls.open if "" in types or asked.request_type in types or asked.sent < old]
        for session in {asked.pinned for asked in due if asked.pinned}:
            await self._observer.gone(session, CHECK_SECONDS)
        for request_type in {asked.request_type for asked in due if not asked.pinned}:
            began = clock()
            counts = await self._control.counts(self._topology.requests(request_type), CHECK_SECONDS)
            if counts is None or not counts.consumers:
                await self._end(request_type, began)

    async def _end(self, request_type: str, began: float) -> None:
        """End what was sent before the look began. What came after may have found a new responder."""

        def lost() -> list[Call]:
            open_ = self._calls.open
            return [c for c in open_ if c.request_type == request_type and c.sent < began and not c.pinned]

        # An answer may be on its way to us, sent by who is gone now.
        if lost():
            await self._calls.wait_heard()
        for asked in lost():
            asked.end(AnswerKind.RESPONDER_DOWN, f"no responder to {request_type!r} is left")

    def _on_down(self, down: Down) -> None:
        for asked in list(self._calls.open):
            if asked.pinned == down.session:
                asked.end(AnswerKind.RESPONDER_DOWN, f"its responder {down.session} is down: {down.reason}")
        self._look_soon("")

    def _on_left(self, message: Received) -> None:
        key = message.routing_key
        if not key.startswith("left."):
            raise Malformed("left no request type")
        self._look_soon(key.removeprefix("left."))

    def _look_soon(self, request_type: str) -> None:
        loop = asyncio.get_running_loop()
        if any(True for _ in self._calls.open):
            for pause in LOOKS:
                loop.call_later(pause, self._look_now, request_type)

    def _look_now(self, request_type: str) -> None:
        self._due.add(request_type)
        self._wake.set()
