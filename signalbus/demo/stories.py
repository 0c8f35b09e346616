"""Two signals of a demo worth looking at: one that was retried, and one that came again after the kill."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from ..trace.model import State, Trace
from ..trace.reader import TraceReader
from .place import Place
from .results import read_retried, read_taken_over

TOLD_SECONDS = 20.0  # facts travel beside the signals, and a busy machine files them later
LOOK_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A signal's trace, and why it is shown."""

    title: str
    trace: Trace


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
    """Tell whether its publication is known, and that all who got it acked it, the remarkable one among them."""
    states = {delivery.subscription: delivery.state for delivery in trace.root.deliveries}
    done = subscription in states and set(states.values()) == {State.ACKED}
    return done and trace.root.published is not None
