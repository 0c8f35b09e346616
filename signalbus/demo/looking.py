"""A window on the demo: its page, and its traces; on RabbitMQ with a router of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..brokers.sqlite.broker import SqliteBroker
from ..bus import Bus
from ..deadletters import DeadLetters
from ..router.daemon import Router
from ..trace.listing import Retention
from ..trace.reader import TraceReader
from ..trace.store import SqliteStore
from ..web.access import Access
from ..web.window import window_on
from .place import Place

LOOK_SECONDS = 10.0
READY_SECONDS = 20.0
KEPT = Retention(seconds=86_400.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where the page is, and what is behind it."""

    url: str
    traces: TraceReader
    letters: DeadLetters


@asynccontextmanager
async def looking(place: Place, bus: Bus) -> AsyncGenerator[Window]:
    """Open a window on a demo."""
    if isinstance(bus.broker, SqliteBroker):
        async with (
            window_on(bus, Access(or_any=True), LOOK_SECONDS) as url,
            await bus.broker.traces(LOOK_SECONDS) as traces,
        ):
            yield Window(url=url, traces=traces, letters=await bus.broker.letters(LOOK_SECONDS))
        return
    async with _routing(place) as router, TraceReader(await asyncio.to_thread(_store, place)) as traces:
        yield Window(url=router.url or "", traces=traces, letters=router.letters)


def _store(place: Place) -> SqliteStore:
    return SqliteStore(place.store, read_only=True)


@asynccontextmanager
async def _routing(place: Place) -> AsyncGenerator[Router]:
    """Run a router, as `signalbus router` does."""
    bus = Bus(place.url, name="signalbus-demo/router", connect_timeout=LOOK_SECONDS, ledger="off")
    router = Router(bus, place.store, KEPT, access=Access(or_any=True))
    serving = asyncio.create_task(router.serve(), name="demo/router")
    ready = asyncio.create_task(router.ready.wait(), name="demo/router is ready")
    try:
        await asyncio.wait([serving, ready], timeout=READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving  # raises why it ended
        yield router
    finally:
        for task in (ready, serving):
            task.cancel()
            await asyncio.wait([task])
