"""The roll call: who is there, and what each says of itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from ...sessions import SessionInfo
from ..base import SessionStatus
from . import census, store
from .directory import Post
from .records import moment_of
from .sessions import is_alive

_REPORT_SECONDS = 0.25
_AT_ONCE = 200  # connections: more would take the files that the application needs


def living(connection: store.Connection, directory: Path) -> list[census.RollRow]:
    """Return the sessions whose processes live, oldest first."""
    return [row for row in census.roll(connection) if is_alive(directory, row[1])]


async def call_roll(
    rows: Sequence[census.RollRow],
    directory: Path,
    ours: tuple[str, bytes],
    ask: Callable[[Post, float], Awaitable[bytes | None]],
    timeout: float,
) -> list[SessionStatus]:
    """Ask everybody at once; leave out who has died meanwhile. ``ours`` is our session and what it says."""

    turns = asyncio.Semaphore(_AT_ONCE)

    async def status(row: census.RollRow) -> SessionStatus | None:
        info = _info(row)
        if info.id == ours[0]:
            return SessionStatus(info=info, report=ours[1])
        async with turns:
            report = await ask(Post(info.id, row[1], row[9]), min(timeout, _REPORT_SECONDS))
        if report is None and not await asyncio.to_thread(is_alive, directory, row[1]):
            return None
        return SessionStatus(info=info, report=report)

    return [found for found in await asyncio.gather(*map(status, rows)) if found is not None]


def _info(row: census.RollRow) -> SessionInfo:
    _, _, session, name, host, pid, version, started, incarnation, _ = row
    return SessionInfo(
        id=session,
        name=name,
        host=host,
        pid=pid,
        version=version,
        started=moment_of(started),
        incarnation=incarnation,
    )
