"""The traces of a daemon, as if they were in a file here: facts come over, and traces are made of them on this side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from ..errors import ConfigError, StorageError
from ..ledger import Batch, Fact, LedgerError
from ..trace.listing import MIN_PREFIX, Candidate, Listed, Page, Query, Retention, StoreStats
from ..trace.reader import TraceReader
from ..trace.tree import outline
from .client import Client, Parameters, segment
from .facts import facts_of
from .filters import SIGNALS
from .trace_shapes import FactsJson, ListedFactsJson, SignalsJson, StoreJson
from .values import CANDIDATES, Shape

_FACTS = Shape(TypeAdapter(tuple[FactsJson]))
_SIGNALS = Shape(TypeAdapter(tuple[SignalsJson]))
_STORE = Shape(TypeAdapter(tuple[StoreJson]))


class RemoteTraces:
    """A `TraceStore` that reads only."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def reader(self) -> TraceReader:
        """Return what answers questions about them, and knows how many facts the daemon has not sorted in yet."""

        async def behind() -> int:
            return (await asyncio.to_thread(self._client.get, _STORE, "/store"))["behind"]

        return TraceReader(self, behind)

    def append(self, batches: Sequence[Batch]) -> int:
        """Refuse: a daemon collects facts itself."""
        raise StorageError(f"the store of {self._client.url} is read only here")

    def prune(self, retention: Retention, piece: int = 0) -> bool:
        """Refuse: a daemon forgets by its own settings."""
        raise StorageError(f"the store of {self._client.url} is read only here")

    def trace_facts(self, signal: str) -> list[Fact]:
        """See `TraceStore`."""
        return _facts(self._client.get(_FACTS, f"/traces/{segment(signal)}/facts")["batches"])

    def find(self, prefix: str) -> list[Candidate]:
        """See `TraceStore`."""
        if len(prefix.strip()) < MIN_PREFIX:
            raise ConfigError(f"{prefix!a} is too short for an id; give at least {MIN_PREFIX} characters of it")
        found: Sequence[Candidate] = self._client.get(CANDIDATES, "/traces/find", [("prefix", prefix)])
        return list(found)

    def page(self, query: Query) -> Page:
        """See `TraceStore`. A long one comes in several pieces."""
        listed: list[Listed] = []
        before = query.before
        while True:
            wanted = min(query.limit - len(listed), SIGNALS)
            piece = self._client.get(_SIGNALS, "/traces", _parameters(query, before, wanted))
            listed += [_listed(each) for each in piece["facts"] or ()]
            before = piece["next"]
            if before is None or not piece["complete"] or len(listed) >= query.limit:
                return Page(signals=tuple(listed), next=before, complete=piece["complete"])

    def stats(self) -> StoreStats:
        """See `TraceStore`."""
        told = self._client.get(_STORE, "/store")
        return StoreStats(facts=told["facts"], bytes=told["bytes"], dropped=told["dropped"], oldest=told["oldest"])

    def close(self) -> None:
        """Do nothing: each question has a connection of its own."""


def _listed(told: ListedFactsJson) -> Listed:
    return Listed(signal=outline(told["id"], _facts(told["batches"])), at=told["at"], failed=told["failed"])


def _facts(batches: Sequence[dict[str, Any]]) -> list[Fact]:
    try:
        return facts_of(batches)
    except LedgerError as error:
        raise StorageError(f"the facts that came cannot be read: {error}") from error


def _parameters(query: Query, before: int | None, limit: int) -> Parameters:
    single: dict[str, object] = {
        "since": query.since,
        "until": query.until,
        "subscription": query.subscription,
        "before": before,
        "limit": limit,
        "failed": "true" if query.failed else None,
        "facts": "true",
    }
    return [
        *((name, str(value)) for name, value in single.items() if value is not None),
        *(("type", pattern) for pattern in query.patterns),
        *(("state", state.value) for state in sorted(query.states)),
        *(("where", f"{path}={value}") for path, value in query.where),
    ]
