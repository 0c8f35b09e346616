"""A window on a bus: its API and its page, served from the process that opens it."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

from ..brokers.base import BrokerState
from ..brokers.sqlite.broker import SqliteBroker
from ..bus import Bus
from ..children import ChildSpec
from ..inspection import Inspection
from ..supervision import Supervisor
from .access import Access
from .app import create_app
from .looks import Looks
from .pages import login_page, page_routes
from .serve import WebServer

log = logging.getLogger(__name__)


def make_window(inspection: Inspection, access: Access) -> WebServer:
    """Return what serves the API and the page; `as_child` runs it."""
    looks = Looks(inspection)

    async def rates() -> Mapping[str, float] | None:
        await looks.sessions()
        return looks.tally.rates

    pages = page_routes(inspection, rates)
    return WebServer(create_app(inspection, access, pages, login_page, looks=looks), access)


def as_child(server: WebServer) -> ChildSpec:
    """Return a server as a child of a supervisor."""
    return ChildSpec(name="api and page", start=server.serve, ready=server.ready)


@asynccontextmanager
async def window_on(bus: Bus, access: Access, timeout: float) -> AsyncGenerator[str]:
    """Open a window on an open bus with the embedded broker, and yield its URL.

    It is an aid, so what goes wrong with it later is logged, and the bus goes on. ``timeout`` in seconds for each look.
    Raises `ChildError` if it cannot listen there.
    """
    async with _inspected(bus, timeout) as inspection:
        server = make_window(inspection, access)
        supervisor = Supervisor("window", _given_up, children=[as_child(server)])
        async with supervisor:
            yield server.url


@asynccontextmanager
async def _inspected(bus: Bus, timeout: float) -> AsyncGenerator[Inspection]:
    broker = bus.broker
    assert isinstance(broker, SqliteBroker), "only the embedded broker keeps traces and dead letters itself"
    letters = await broker.letters(timeout)
    try:
        async with await broker.traces(timeout) as traces:
            yield Inspection(bus=bus, traces=traces, letters=letters, troubles=lambda: _troubles(bus))
    finally:
        await letters.aclose()


def _troubles(bus: Bus) -> Sequence[str]:
    health = bus.broker.health()
    return [] if health.state is BrokerState.UP else [f"the broker is {health.state}: {health.reason}"]


def _given_up(error: BaseException) -> None:
    log.error("the API and the page are not served any more: %s", error, exc_info=error)
