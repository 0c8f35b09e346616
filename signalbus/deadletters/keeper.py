"""What all keepers of dead letters do alike, over the tables: all but replaying, which needs a broker."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from . import audit, queries, transitions
from .model import AuditEntry, LetterGroup, LetterPage, LetterQuery, LetterSummary, Replay

T = TypeVar("T")

Question = Callable[[sqlite3.Connection], T]
Order = Callable[[sqlite3.Connection, float], T]


class Keeper(ABC):
    """Most of a `DeadLetters`; see there."""

    @abstractmethod
    async def _ask(self, question: Question[T]) -> T:
        """Answer a question from one state of the tables, after what has happened is on record."""

    @abstractmethod
    async def _order(self, order: Order[T]) -> T:
        """Carry out a change, called with the time, in a write transaction; it may be called again if that failed."""

    async def groups(self, query: LetterQuery) -> Sequence[LetterGroup]:
        """See `DeadLetters.groups`."""
        return await self._ask(partial(queries.groups, query=query))

    async def page(self, query: LetterQuery) -> LetterPage:
        """See `DeadLetters.page`."""
        return await self._ask(partial(queries.page, query=query))

    async def find(self, prefix: str) -> Sequence[LetterSummary]:
        """See `DeadLetters.find`."""
        return await self._ask(partial(queries.find, prefix=prefix))

    async def progress(self, replay: str) -> Replay | None:
        """See `DeadLetters.progress`."""
        return await self._ask(partial(queries.progress, replay=replay))

    async def replays(self, limit: int = 20) -> Sequence[Replay]:
        """See `DeadLetters.replays`."""
        return await self._ask(partial(queries.replays, limit=limit))

    async def audit(self, limit: int = 100) -> Sequence[AuditEntry]:
        """See `DeadLetters.audit`."""
        return await self._ask(partial(audit.newest, limit=limit))

    async def cancel(self, replay: str, *, by: str) -> int:
        """See `DeadLetters.cancel`."""
        return await self._order(lambda connection, now: transitions.cancel(connection, replay, at=now, by=by))

    async def discard(self, query: LetterQuery, *, by: str, note: str = "") -> int:
        """See `DeadLetters.discard`."""
        return await self._order(
            lambda connection, now: transitions.discard(connection, query, at=now, by=by, note=note)
        )

    async def restore(self, query: LetterQuery, *, by: str) -> int:
        """See `DeadLetters.restore`."""
        return await self._order(lambda connection, now: transitions.restore(connection, query, at=now, by=by))
