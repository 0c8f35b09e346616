"""Inserting many rows with few statements.

A statement with a hundred rows takes two thirds of the time of a hundred executions, and the interpreter is free for
other threads all the while, instead of being asked for again and again between two rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

ROWS = 100  # of one statement; SQLite's own bound is 32,766 values

Rows = Sequence[tuple[object, ...]]


def insert(connection: sqlite3.Connection, into: str, rows: Rows, conflict: str = "") -> int:
    """Insert rows, all of the same width, in their order; return how many changed something.

    ``into``: the statement up to its columns. ``conflict``: what follows the values.
    """
    if not rows:
        return 0
    changed, whole = 0, len(rows) - len(rows) % ROWS
    statement = _statement(into, len(rows[0]), ROWS, conflict)
    for start in range(0, whole, ROWS):
        values = list(chain.from_iterable(rows[start : start + ROWS]))
        changed += connection.execute(statement, values).rowcount
    if whole < len(rows):
        single = _statement(into, len(rows[0]), 1, conflict)
        changed += connection.executemany(single, rows[whole:]).rowcount
    return changed


@lru_cache(64)
def _statement(into: str, width: int, rows: int, conflict: str) -> str:
    row = f"({', '.join('?' * width)})"
    return f"{into} VALUES {', '.join([row] * rows)} {conflict}".rstrip()
