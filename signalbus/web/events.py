"""Server-sent events: numbers each second, and a hint when something changed. A hint says what, and nothing else.

A stream ends by itself after `Rhythm.life` seconds, and the browser begins another: so whoever lost the right to read
stops reading. Its reader, if it does not read, is cut off by the connection (`signalbus.web.protocol`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ..errors import SignalBusError
from ..inspection import Inspection
from .closing import closing_of
from .failures import problem_response
from .looks import Looks
from .operations import PREFIX
from .problems import Problem
from .state import STATS, stats_of
from .values import written

READERS = 32
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rhythm:
    """Seconds: between numbers, of silence until a comment shows that we are there, and that a stream lives."""

    interval: float = 1.0
    heartbeat: float = 5.0
    life: float = 900.0


DEFAULT_RHYTHM = Rhythm()


class Streams:
    """The streams of one application, at most `READERS` at a time."""

    def __init__(self, limit: int = READERS) -> None:
        self.open = 0
        self._limit = limit

    def enter(self) -> bool:
        """Take a place, if there is one."""
        if self.open >= self._limit:
            return False
        self.open += 1
        return True

    def leave(self) -> None:
        """Give a place back."""
        self.open -= 1


def events_route(inspection: Inspection, looks: Looks, streams: Streams, rhythm: Rhythm = DEFAULT_RHYTHM) -> Route:
    """Return the route of the events."""

    async def listen(request: Request) -> Response:
        return _EventStream(_Teller(inspection, looks), streams, closing_of(request.app), rhythm)

    return Route(f"{PREFIX}/events", listen)


def event(name: str, value: object) -> bytes:
    """Return an event as it is sent. JSON on one line has no line ends that could forge another."""
    return b"event: " + name.encode() + b"\ndata: " + written(value) + b"\n\n"


class _Teller:
    """What there is to tell one reader, each time that it is asked for."""

    def __init__(self, inspection: Inspection, looks: Looks) -> None:
        self._inspection = inspection
        self._looks = looks
        self._marks: dict[str, object] = {}

    async def tell(self) -> bytes:
        """Return the numbers, and what changed since the last time."""
        numbers = event("stats", STATS.dump(await stats_of(self._inspection, self._looks)))
        seen = await _marks(self._looks)
        changed = sorted(name for name, mark in seen.items() if name in self._marks and self._marks[name] != mark)
        self._marks |= seen
        return numbers + (event("changed", {"what": changed}) if changed else b"")


async def _marks(looks: Looks) -> dict[str, object]:
    """Return what is another one once something changed. What cannot be asked for is told among the numbers."""
    marks: dict[str, object] = {}
    with suppress(SignalBusError):
        store = await looks.store()
        marks["traces"] = (store.facts, store.oldest)
    with suppress(SignalBusError):
        marks["dead_letters"] = [(group.id, group.counts, group.newest) for group in await looks.groups()]
    with suppress(SignalBusError):
        marks["subscribers"] = [(queue.name, queue.patterns, queue.consumers) for queue in await looks.queues()]
    return marks


class _EventStream(Response):
    """An answer that goes on until its reader leaves, its time is over, or the application stops."""

    def __init__(self, teller: _Teller, streams: Streams, closing: asyncio.Event, rhythm: Rhythm) -> None:
        super().__init__()
        self._teller = teller
        self._streams = streams
        self._closing = closing
        self._rhythm = rhythm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, or say that there are too many."""
        if not self._streams.enter():
            await problem_response(_too_many(self._streams.open))(scope, receive, send)
            return
        over = asyncio.create_task(_over(receive, self._closing))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            if scope["method"] == "GET":
                await send(_part(b"retry: 2000\n\n"))
                await self._tell(send, over)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._streams.leave()
            await _ended(over)

    async def _tell(self, send: Send, over: asyncio.Task[None]) -> None:
        clock = asyncio.get_running_loop().time
        until = clock() + self._rhythm.life
        while clock() < until and not over.done():
            telling = asyncio.create_task(self._teller.tell())
            try:
                await self._until_told(telling, send, over)
                if telling.done():
                    await send(_part(telling.result()))
            finally:
                await _ended(telling)
            await asyncio.wait([over], timeout=self._rhythm.interval)

    async def _until_told(self, telling: asyncio.Task[bytes], send: Send, over: asyncio.Task[None]) -> None:
        """Wait for something to tell, and show meanwhile that we are there."""
        both: list[asyncio.Task[bytes] | asyncio.Task[None]] = [telling, over]
        while not (await asyncio.wait(both, timeout=self._rhythm.heartbeat, return_when=asyncio.FIRST_COMPLETED))[0]:
            await send(_part(b": still here\n\n"))


async def _over(receive: Receive, closing: asyncio.Event) -> None:
    """Wait until the reader is gone, or the application stops."""
    ends = [asyncio.create_task(_left(receive)), asyncio.create_task(_set(closing))]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            await _ended(end)


async def _ended(task: asyncio.Task[bytes] | asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _set(event: asyncio.Event) -> None:
    await event.wait()


async def _left(receive: Receive) -> None:
    """Wait until the reader is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _too_many(count: int) -> Problem:
    return Problem(
        status=503,
        error=f"{count} read events already",
        advice="close some, or ask /api/v1/stats again and again",
        headers={"retry-after": "10"},
    )
