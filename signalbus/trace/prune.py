"""Forgetting the oldest signals, a few at a time, in transactions of the caller, so that no writer waits long."""

from __future__ import annotations

import sqlite3

from .append import ROW_BYTES, SEGMENT_BITS
from .candidates import pairs
from .listing import Retention
from .records import round_place, time_of

PIECE = 500  # signals of one piece: some milliseconds
_DELIVERIES = 4  # rows of one piece, for each of its signals
_FIELDS = 8


def prune(connection: sqlite3.Connection, retention: Retention, now: float, piece: int = PIECE) -> bool:
    """Forget up to ``piece`` of the oldest signals that are not to be kept; return whether there may be more.

    What is left of earlier ones in indices goes with them, piece by piece: where more is stored all the time, there
    would never be a time for it.
    """
    cutoff = _cutoff(connection, retention, now, piece)
    if cutoff is not None:
        _forget(connection, cutoff)
    floor = connection.execute("SELECT floor FROM ledger_meta").fetchone()[0]
    deliveries, indexed = piece * _DELIVERIES, piece * _FIELDS
    rest = _prune_deliveries(connection, floor, deliveries) or _prune_fields(connection, floor, indexed)
    return rest or cutoff is not None


def _cutoff(connection: sqlite3.Connection, retention: Retention, now: float, piece: int) -> int | None:
    """Return the place before which this piece of signals is, None if all are to be kept."""
    size = connection.execute("SELECT bytes FROM ledger_meta").fetchone()[0]
    oldest = [
        row[0]
        for row in connection.execute("SELECT place FROM ledger_signals ORDER BY place LIMIT ?", (piece,)).fetchall()
    ]
    if retention.bytes is not None and size > retention.bytes and oldest:
        return int(oldest[-1]) + 1
    if retention.seconds is None:
        return None
    limit = round_place(now - retention.seconds)
    old = [place for place in oldest if place < limit]
    return min(old[-1] + 1, limit) if old else None


def _forget(connection: sqlite3.Connection, cutoff: int) -> None:
    count, size = connection.execute(
        "SELECT count(*), coalesce(sum(length(fact)), 0) FROM ledger_facts WHERE place < ?", (cutoff,)
    ).fetchone()
    connection.execute("DELETE FROM ledger_facts WHERE place < ?", (cutoff,))
    connection.execute("DELETE FROM ledger_signals WHERE place < ?", (cutoff,))
    connection.execute("DELETE FROM ledger_sessions WHERE at < ?", (time_of(cutoff),))
    connection.execute(
        "UPDATE ledger_meta SET floor = max(floor, ?), facts = max(facts - ?, 0), bytes = max(bytes - ?, 0)",
        (cutoff, count, size + count * ROW_BYTES),
    )


def _prune_deliveries(connection: sqlite3.Connection, floor: int, most: int) -> bool:
    """Forget deliveries of signals that are gone: those of one type at one subscription lie side by side."""
    forgotten = 0
    for pair in pairs(connection):
        deleted = connection.execute(
            "DELETE FROM ledger_deliveries WHERE subscription = ?1 AND type = ?2 AND place < ?3 AND place IN ("
            "SELECT place FROM ledger_deliveries WHERE subscription = ?1 AND type = ?2 ORDER BY place LIMIT ?4)",
            (*pair, floor, most - forgotten),
        )
        forgotten += deleted.rowcount
        if forgotten >= most:
            return True
    return forgotten > 0


def _prune_fields(connection: sqlite3.Connection, floor: int, most: int) -> bool:
    """Forget a part of the oldest segment of fields, if all its signals are gone."""
    oldest = connection.execute("SELECT min(segment) FROM ledger_fields").fetchone()[0]
    if oldest is None or oldest >= floor >> SEGMENT_BITS:
        return False
    connection.execute(
        "DELETE FROM ledger_fields WHERE segment = ?1 AND hash <= coalesce("
        "(SELECT hash FROM ledger_fields WHERE segment = ?1 ORDER BY hash LIMIT 1 OFFSET ?2), ?3)",
        (oldest, most, 2**63 - 1),
    )
    return True
