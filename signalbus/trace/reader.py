"""Answers about traces, off the event loop: a store that blocks, behind calls that do not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from ..ledger import Fact
from .listing import Candidate, Page, Query, StoreStats
from .model import Trace
from .store import TraceStore
from .tree import build

CatchUp = Callable[[], Awaitable[int]]


async def _nothing_waits() -> int:
    return 0


class TraceReader:
    """Asks a store, which it closes at its end. ``catch_up`` is called before each question: it brings the store up
    to date, as far as time allows, and returns how many facts it has not got yet."""

    def __init__(self, store: TraceStore, catch_up: CatchUp = _nothing_waits) -> None:
        self.behind = 0  # facts that the last answer did not know of, as they were not filed in time
        self._store = store
        self._catch_up = catch_up

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._store.close)

    async def page(self, query: Query) -> Page:
        """Return signals, newest first. Raises `ConfigError` for a pattern that cannot be."""
        self.behind = await self._catch_up()
        return await asyncio.to_thread(self._store.page, query)

    async def find(self, prefix: str) -> list[Candidate]:
        """Return signals whose ids begin like this, at least six characters. Raises `ConfigError`."""
        self.behind = await self._catch_up()
        return await asyncio.to_thread(self._store.find, prefix)

    async def trace(self, signal: str) -> Trace:
        """Return a signal with everything it caused; what is not known of it is empty."""
        return build(signal, await self.facts(signal))

    async def facts(self, signal: str) -> list[Fact]:
        """Return what a trace is made of: facts of a signal, of what it caused, and of the sessions that had it."""
        self.behind = await self._catch_up()
        return await asyncio.to_thread(self._store.trace_facts, signal)

    async def stats(self) -> StoreStats:
        """Return how much is stored."""
        self.behind = await self._catch_up()
        return await asyncio.to_thread(self._store.stats)
