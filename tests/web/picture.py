"""Takes the picture of the page in the README: ``python -m tests.web.picture docs/images/page.png``.

A real bus on a file, with flights of the demo: the board is busy at first, and who sends notices gives up.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack, chdir
from datetime import timedelta
from pathlib import Path

from starlette.applications import Starlette

from signalbus import Bus, RetryPolicy
from signalbus.brokers.sqlite.broker import SqliteBroker
from signalbus.demo.flights import CANCELLED, Event, Movement, read_events
from signalbus.inspection import Inspection
from signalbus.trace.reader import TraceReader
from signalbus.web.pages import page_routes
from signalbus.web.pages.links import trace_url
from tests.support import eventually
from tests.web.page_browser import Browser, screenshot, served
from tests.web.page_letters import MemoryLetters

URL = "sqlite:///flights.db"
ROWS = 1_200
SHOWN = 60  # flights, those around the first that was cancelled
SECONDS = 5.0
RETRY = RetryPolicy(max_attempts=3, initial=timedelta(milliseconds=120), jitter=False)
WIDTH, HEIGHT = 1_200, 1_010
LIMIT = 200 * 1024  # bytes


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, help="the PNG to write")
    parser.add_argument("--dark", action="store_true", help="in the dark theme")
    arguments = parser.parse_args()
    path = arguments.path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, chdir(directory):
        asyncio.run(_take(path, dark=arguments.dark))
    size = path.stat().st_size
    print(f"{path}: {size / 1024:.0f} KiB")
    if size > LIMIT:
        raise SystemExit(f"larger than {LIMIT} bytes: show less, or lower HEIGHT")


async def _take(path: Path, *, dark: bool) -> None:
    async with AsyncExitStack() as stack:
        tower, *_ = [await stack.enter_async_context(bus) for bus in _airport()]
        cancelled = await _publish(tower)
        assert isinstance(tower.broker, SqliteBroker)
        traces = await stack.enter_async_context(await tower.broker.traces(SECONDS))
        settled: bool = await eventually(lambda: _settled(traces, cancelled), timeout=30)
        assert settled
        inspection = Inspection(bus=tower, traces=traces, letters=MemoryLetters(), troubles=lambda: ())
        site = await stack.enter_async_context(served(Starlette(routes=page_routes(inspection))))

        def shoot(browser: Browser) -> None:
            if dark:
                browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
            browser.open(trace_url(cancelled))
            screenshot(browser, path)

        await site.use(shoot, width=WIDTH, height=HEIGHT)


def _airport() -> Iterator[Bus]:
    """Yield the sessions of an airport; the first publishes."""
    yield Bus(URL, name="tower")
    board, screens, notices, delays = (Bus(URL, name=f"{name}-1") for name in ("board", "screens", "notices", "delays"))

    @board.subscribe("flight.#", name="board", concurrency=8, retry=RETRY)
    async def show(movement: Movement) -> None:
        await asyncio.sleep(0.03)
        if movement.delay is None and os.environ.setdefault("GATE", "busy") == "busy":
            os.environ["GATE"] = "free"
            raise TimeoutError("gate C71 does not answer")
        await board.publish("board.updated", {"flight": f"{movement.carrier}{movement.flight}"})
        await asyncio.sleep(0.02)

    @screens.subscribe("board.updated", name="screens", concurrency=8)
    async def draw(change: dict[str, str]) -> None:
        await asyncio.sleep(0.06)

    @notices.subscribe("flight.cancelled.*", name="notices", retry=RETRY)
    async def send(movement: Movement) -> None:
        await asyncio.sleep(0.05)
        raise ConnectionError("sms.example answered 503: try again later")

    @delays.subscribe("flight.departed.*", "flight.arrived.*", name="delays", concurrency=8)
    async def add(movement: Movement) -> None:
        await asyncio.sleep(0.01)

    yield from (board, screens, notices, delays)


async def _publish(tower: Bus) -> str:
    """Publish flights; return the signal of the one that was cancelled."""
    events = read_events(ROWS)
    first = next(number for number, event in enumerate(events) if event.kind == CANCELLED)
    for event in events[max(first - SHOWN, 0) : first]:
        await tower.publish(event.type, event.movement, subject=_subject(event))
    receipt = await tower.publish(events[first].type, events[first].movement, subject=_subject(events[first]))
    return receipt.id


def _subject(event: Event) -> str:
    return f"{event.movement.carrier}{event.movement.flight}"


async def _settled(traces: TraceReader, signal: str) -> bool:
    root = (await traces.trace(signal)).root
    states = {delivery.state.value for delivery in root.deliveries}
    caused = [delivery.state.value for child in root.children for delivery in child.deliveries]
    return states == {"acked", "dead"} and caused == ["acked"]


if __name__ == "__main__":
    main()
