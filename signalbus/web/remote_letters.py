"""The dead letters of a daemon, as if their keeper were here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from pydantic import TypeAdapter

from ..deadletters import (
    AuditEntry,
    Letter,
    LetterGroup,
    LetterPage,
    LetterQuery,
    LetterState,
    LetterSummary,
    Replay,
)
from ..deadletters.model import DEFAULT_RATE
from .callers import as_header
from .client import Client, Parameters, Unknown, segment
from .filters import LETTERS as PAGE
from .letters import COUNT
from .letters import PATH as LETTERS_PATH
from .values import AUDIT, GROUPS, LETTER, LETTER_PAGE, LETTERS, REPLAY, REPLAYS, WIRE, Shape

_QUERY = Shape(TypeAdapter(tuple[LetterQuery], config=WIRE))


class RemoteLetters:
    """Implements `DeadLetters`. A page has at most so many as the daemon gives at once; `LetterPage.next` goes on."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def groups(self, query: LetterQuery) -> Sequence[LetterGroup]:
        """See `DeadLetters`."""
        return await asyncio.to_thread(self._client.get, GROUPS, f"{LETTERS_PATH}/groups", _parameters(query))

    async def page(self, query: LetterQuery) -> LetterPage:
        """See `DeadLetters`."""
        wanted = [*_parameters(query), ("after", query.after), ("limit", str(min(query.limit, PAGE)))]
        return await asyncio.to_thread(self._client.get, LETTER_PAGE, LETTERS_PATH, wanted)

    async def find(self, prefix: str) -> Sequence[LetterSummary]:
        """See `DeadLetters`."""
        return await asyncio.to_thread(self._client.get, LETTERS, f"{LETTERS_PATH}/find", [("prefix", prefix)])

    async def get(self, letter: str) -> Letter | None:
        """See `DeadLetters`."""
        try:
            return await asyncio.to_thread(self._client.get, LETTER, f"{LETTERS_PATH}/{segment(letter)}")
        except Unknown:
            return None

    async def replay(self, query: LetterQuery, *, by: str, rate: float = DEFAULT_RATE) -> Replay:
        """See `DeadLetters`."""
        order = {"query": _QUERY.dump(query), "rate": rate}
        return await asyncio.to_thread(self._client.post, REPLAY, f"{LETTERS_PATH}/replay", order, as_header(by))

    async def progress(self, replay: str) -> Replay | None:
        """See `DeadLetters`."""
        try:
            return await asyncio.to_thread(self._client.get, REPLAY, f"/replays/{segment(replay)}")
        except Unknown:
            return None

    async def replays(self, limit: int = 20) -> Sequence[Replay]:
        """See `DeadLetters`."""
        return await asyncio.to_thread(self._client.get, REPLAYS, "/replays", [("limit", str(limit))])

    async def cancel(self, replay: str, *, by: str) -> int:
        """See `DeadLetters`."""
        try:
            return await self._count(f"/replays/{segment(replay)}/cancel", {}, by)
        except Unknown:
            return 0

    async def discard(self, query: LetterQuery, *, by: str, note: str = "") -> int:
        """See `DeadLetters`."""
        return await self._count(f"{LETTERS_PATH}/discard", {"query": _QUERY.dump(query), "note": note}, by)

    async def restore(self, query: LetterQuery, *, by: str) -> int:
        """See `DeadLetters`."""
        return await self._count(f"{LETTERS_PATH}/restore", {"query": _QUERY.dump(query)}, by)

    async def audit(self, limit: int = 100) -> Sequence[AuditEntry]:
        """See `DeadLetters`."""
        return await asyncio.to_thread(self._client.get, AUDIT, "/audit", [("limit", str(limit))])

    async def aclose(self) -> None:
        """Do nothing: each question has a connection of its own."""

    async def _count(self, path: str, order: dict[str, object], by: str) -> int:
        return (await asyncio.to_thread(self._client.post, COUNT, path, order, as_header(by))).count


def _parameters(query: LetterQuery) -> Parameters:
    single: dict[str, object] = {
        "group": query.group,
        "subscription": query.subscription,
        "error": query.error,
        "signal": query.signal,
        "since": query.since,
        "until": query.until,
    }
    return [
        *((name, str(value)) for name, value in single.items() if value not in (None, "")),
        *(("id", letter) for letter in query.ids),
        *(("type", pattern) for pattern in query.patterns),
        *(("state", state.value) for state in sorted(query.states or frozenset(LetterState))),
    ]
