"""Two signals of a demo worth looking at: one that was retried, and one that came again after the kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from ..brokers.sqlite.broker import SqliteBroker
from ..bus import Bus
from ..trace.model import State, Trace
from ..trace.reader import TraceReader
from ..trace.store import SqliteStore
from .place import Place
from .results import read_retried, read_taken_over

TOLD_SECONDS = 15.0  # facts travel beside the signals, and a busy machine files them later
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A signal's trace, and why it is shown."""

    title: str
    trace: Trace


@asynccontextmanager
async def traces_of(place: Place, bus: Bus) -> AsyncGenerator[TraceReader]:
    """Open the traces of a demo: the embedded broker's own, or those that its router keeps."""
    if isinstance(bus.broker, SqliteBroker):
        traces = await bus.broker.traces(TOLD_SECONDS)
    else:
        traces = TraceReader(await asyncio.to_thread(SqliteStore, place.store, read_only=True))
    async with traces:
        yield traces


def remarkable(place: Place) -> Mapping[str, tuple[str, str]]:
    """Return the title of each story, with the subscription and the id of its signal."""
    found = {
        "a flight that was retried": ("board", read_retried(place.results("board"))),
        "a flight whose subscriber was killed": ("delays", read_taken_over(place.results("delays"))),
    }
    return {title: (name, signal) for title, (name, signal) in found.items() if signal is not None}


async def read_stories(place: Place, traces: TraceReader) -> list[Story]:
    """Read the stories, once all that belongs to them is told."""
    deadline = time.monotonic() + TOLD_SECONDS
    return [
        Story(title=title, trace=await _told(traces, signal, place.subscription(name), deadline))
        for title, (name, signal) in remarkable(place).items()
    ]


async def _told(traces: TraceReader, signal: str, subscription: str, deadline: float) -> Trace:
    while True:
        trace = await traces.trace(signal)
        if _is_whole(trace, subscription) or time.monotonic() > deadline:
            return trace
        await asyncio.sleep(LOOK_SECONDS)


def _is_whole(trace: Trace, subscription: str) -> bool:
    """Tell whether its publication is known, and that the subscription which makes it remarkable acked it."""
    states = {delivery.subscription: delivery.state for delivery in trace.root.deliveries}
    return trace.root.published is not None and states.get(subscription) is State.ACKED
