"""A bus on SQLite with a few signals, looked at over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, Unpack

from starlette.routing import BaseRoute

from signalbus import Bus
from signalbus.brokers.sqlite.broker import SqliteBroker
from signalbus.inspection import Inspection
from signalbus.trace.reader import TraceReader
from signalbus.trace.store import TraceStore
from signalbus.web.access import Access
from signalbus.web.app import create_app
from signalbus.web.events import Rhythm
from signalbus.web.protocol import Limits
from signalbus.web.serve import WebServer
from tests.web.fakes import FakeLetters

LOCAL = Access(port=0)
TOKEN = "correct-horse-battery-staple"
GUARDED = Access(port=0, token=TOKEN)
BEARER = {"authorization": f"Bearer {TOKEN}"}
DEADLINE = 10.0


class AppOptions(TypedDict, total=False):
    """What an application may be told beside."""

    rhythm: Rhythm
    crowd: int


@dataclass(slots=True, kw_only=True)
class World:
    """What a test looks at, and where. ``troubles`` may be changed."""

    inspection: Inspection
    bus: Bus
    letters: FakeLetters
    server: WebServer
    troubles: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server.port


@asynccontextmanager
async def world(
    tmp_path: Path,
    *,
    letters: FakeLetters | None = None,
    access: Access = LOCAL,
    limits: Limits | None = None,
    pages: Sequence[BaseRoute] = (),
    store: TraceStore | None = None,
    reader: TraceReader | None = None,
    **options: Unpack[AppOptions],
) -> AsyncGenerator[World]:
    """Yield a bus and a server that looks at it. ``store`` or ``reader``: of traces of another one."""
    troubles: list[str] = []
    keeper = letters or FakeLetters()
    async with Bus(f"sqlite:///{tmp_path}/bus.db", name="looking") as bus:
        assert isinstance(bus.broker, SqliteBroker)
        async with reader or (TraceReader(store) if store else await bus.broker.traces(5.0)) as traces:
            inspection = Inspection(bus=bus, traces=traces, letters=keeper, troubles=lambda: troubles)
            server = WebServer(create_app(inspection, access, pages, **options), access, limits or Limits())
            async with serving(server):
                yield World(inspection=inspection, bus=bus, letters=keeper, server=server, troubles=troubles)


@asynccontextmanager
async def serving(server: WebServer) -> AsyncGenerator[None]:
    """Serve meanwhile."""
    task = asyncio.create_task(server.serve())
    ready = asyncio.create_task(server.ready.wait())
    await asyncio.wait([task, ready], timeout=DEADLINE, return_when=asyncio.FIRST_COMPLETED)
    ready.cancel()
    if task.done():
        await task
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or task.exception() is None, task.exception()
