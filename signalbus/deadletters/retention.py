"""Forgetting dead letters that were acked long ago. Nothing else is ever forgotten: not even what was discarded."""

from __future__ import annotations

import sqlite3

from .selection import Condition, one_of

KEPT_SECONDS = 30 * 86_400.0  # after the ack, to be looked at
_TOGETHER = 500


def expired(now: float) -> Condition:
    """Return the condition of being forgotten."""
    return Condition("state = 'acked' AND changed < ?", (now - KEPT_SECONDS,))


def forget(connection: sqlite3.Connection, now: float) -> int:
    """Forget some of them, with their contents, in a write transaction of the caller; return how many."""
    which = expired(now)
    rows = connection.execute(
        which.within("SELECT number, id, content FROM letters WHERE <condition> LIMIT ?"), (*which.values, _TOGETHER)
    ).fetchall()
    if not rows:
        return 0
    numbers, ids, contents = zip(*rows, strict=True)
    for table, which in (
        ("dead_letters", one_of("position", contents)),
        ("letter_deaths", one_of("letter", numbers)),
        ("letter_audit", one_of("letter", ids)),
        ("letters", one_of("number", numbers)),
    ):
        connection.execute(which.within(f"DELETE FROM {table} WHERE <condition>"), which.values)  # noqa: S608
    return len(rows)
