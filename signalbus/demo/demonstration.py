"""One demo from start to end: open, start the processes, watch, stop, reconcile, tidy up."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from signalbus import Bus

from ..deadletters import DeadLetters, LetterQuery
from .crew import Crew
from .flights import PATTERNS, expected, read_events
from .looking import looking
from .place import Manifest, Place, make_place, opened
from .reconcile import Balance, reconcile
from .stories import Story, read_stories
from .tally import PUBLISHER, Show, Tally

WATCH_SECONDS = 0.05
EMPTY_SECONDS = 10.0
DEAD_LETTERS = 1_000  # of one page


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a demo came to. ``seconds`` from the first signal to the last handler; ``down_seconds`` from the kill of the
    subscriber to its Down, ``refused_seconds`` from that of the responder to ``ResponderDown``; None if it never came.
    """

    balance: Balance
    broker: str
    page: str
    seconds: float
    kills: int
    restarts: int
    down_seconds: float | None
    refused_seconds: float | None
    stories: tuple[Story, ...]

    @property
    def good(self) -> bool:
        """Whether everything is as promised: nothing lost, and both deaths told."""
        return self.balance.good and self.down_seconds is not None and self.refused_seconds is not None


@asynccontextmanager
async def demonstrated(
    show: Show, *, url: str | None, rows: int | None, keep: Path | None, stall_seconds: float, verbose: bool
) -> AsyncGenerator[Outcome]:
    """Run a demo, and yield what it came to; while the body runs, its page can be looked at.

    Without progress for ``stall_seconds`` it stops waiting, and what did not come counts as lost. Raises
    `BrokerUnavailable` at once if there is no broker, `Escalated` if its processes keep dying.
    """
    run = secrets.token_hex(4)
    place = make_place(run, rows, url, keep)
    async with (
        opened(place, min(stall_seconds, 10.0), keep=keep is not None) as bus,
        looking(place, bus) as window,
    ):
        events = read_events(rows)
        counts = {name: len(ids) for name, ids in expected(run, events).items()}
        tally = Tally(expected={PUBLISHER: len(events), **counts})
        crew = Crew(place, bus, tally, show, verbose=verbose)
        try:
            await crew.start_subscribers()
            show.happened(tally, f"{len(PATTERNS)} subscriptions, each served by a process of its own, on {place.kind}")
            show.happened(tally, f"look at it while it runs: {window.url}")
            tally.started = time.monotonic()
            crew.start_publisher()
            async with show.progress(tally):
                await crew.unless_failed(_wait_complete(tally, stall_seconds))
            tally.finished = tally.changed if tally.complete else time.monotonic()
            await _wait_empty(bus, place)
            await crew.unless_failed(crew.lose_a_responder())
            stories = await read_stories(place, window.traces)
        finally:
            await crew.stop()
        dead = await _dead_letters(window.letters, place)
        Manifest(run=run, rows=rows, published=tally.done.get(PUBLISHER, 0), dead=dead).write(place.directory)
        balance = await asyncio.to_thread(reconcile, place.directory)
        yield Outcome(
            balance=balance,
            broker=place.kind,
            page=window.url,
            seconds=tally.seconds,
            kills=crew.kills,
            restarts=crew.restarts,
            down_seconds=crew.down_seconds,
            refused_seconds=crew.refused_seconds,
            stories=tuple(stories),
        )


async def _wait_complete(tally: Tally, stall_seconds: float) -> None:
    while not tally.complete and time.monotonic() - tally.changed < stall_seconds:  # noqa: ASYNC110 - the clock counts
        await asyncio.sleep(WATCH_SECONDS)


async def _wait_empty(bus: Bus, place: Place) -> None:
    """Wait until the last redeliveries, which are duplicates, are handled too; so that they are counted."""
    names = {place.subscription(name) for name in PATTERNS}
    deadline = time.monotonic() + EMPTY_SECONDS
    while time.monotonic() < deadline:
        queues = await bus.broker.queues(EMPTY_SECONDS)
        if not any(queue.ready or queue.unsettled or queue.delayed for queue in queues if queue.name in names):
            return
        await asyncio.sleep(WATCH_SECONDS)


async def _dead_letters(letters: DeadLetters, place: Place) -> dict[str, list[str]]:
    """Return the ids of the signals that each subscription gave up."""
    return {name: await _given_up(letters, place.subscription(name)) for name in PATTERNS}


async def _given_up(letters: DeadLetters, subscription: str) -> list[str]:
    found: list[str] = []
    query = LetterQuery(subscription=subscription, limit=DEAD_LETTERS)
    while True:
        page = await letters.page(query)
        found += (letter.signal for letter in page.letters)
        if not page.next:
            return found
        query = replace(query, after=page.next)
