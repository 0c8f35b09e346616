"""Facts in the database, as they came: whole batches, to be filed into the tables of `signalbus.trace` later.

Storing a batch costs a fraction of filing it, and all of it is in the transaction of a group. Filing goes on when the
writer thread has nothing better to do, and before somebody asks. Functions over a connection, in transactions of the
caller; filing and storing twice change nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ...ledger import Batch, LedgerError, decode, encode
from ...trace.append import append

TABLE = """
CREATE TABLE ledger_spool (
    number INTEGER PRIMARY KEY,
    facts INTEGER NOT NULL,
    batch BLOB NOT NULL  -- see signalbus.ledger.wire
)"""


def store(connection: sqlite3.Connection, batches: Sequence[Batch]) -> int:
    """Store batches to be filed, all or none; return their bytes. Raises `sqlite3.Error`.

    An error leaves the rest of the transaction as it was, unless SQLite has given all of it up.
    """
    rows = [(len(batch.rows), encode(batch)) for batch in batches]
    connection.execute("SAVEPOINT facts")
    try:
        connection.executemany("INSERT INTO ledger_spool (facts, batch) VALUES (?, ?)", rows)
    except sqlite3.Error:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO facts")
            connection.execute("RELEASE facts")
        raise
    connection.execute("RELEASE facts")
    return sum(len(encoded) for _, encoded in rows)


def file(connection: sqlite3.Connection, limit: int) -> tuple[int, int]:
    """File the oldest ``limit`` batches; return how many batches that were, and how many facts could not be read."""
    rows: list[tuple[int, int, bytes]] = connection.execute(
        "SELECT number, facts, batch FROM ledger_spool ORDER BY number LIMIT ?", (limit,)
    ).fetchall()
    if not rows:
        return 0, 0
    batches: list[Batch] = []
    unreadable = 0
    for _, facts, encoded in rows:
        try:
            batches.append(decode(encoded))
        except LedgerError:
            unreadable += facts
    append(connection, batches)
    connection.execute("DELETE FROM ledger_spool WHERE number <= ?", (rows[-1][0],))
    return len(rows), unreadable


def newest(connection: sqlite3.Connection) -> int:
    """Return the number of the newest batch that waits, 0 if none does."""
    return int(connection.execute("SELECT coalesce(max(number), 0) FROM ledger_spool").fetchone()[0])


def waiting(connection: sqlite3.Connection, newest: int = 2**63 - 1) -> tuple[int, int]:
    """Return how many facts of batches up to ``newest`` wait to be filed, and their bytes."""
    facts, size = connection.execute(
        "SELECT coalesce(sum(facts), 0), coalesce(sum(length(batch)), 0) FROM ledger_spool WHERE number <= ?", (newest,)
    ).fetchone()
    return facts, size


def trim(connection: sqlite3.Connection, batches: int) -> int:
    """Forget the oldest ``batches`` that wait; return how many facts that were."""
    row = connection.execute(
        "SELECT max(number), sum(facts) FROM (SELECT number, facts FROM ledger_spool ORDER BY number LIMIT ?)",
        (batches,),
    ).fetchone()
    if row[0] is None:
        return 0
    connection.execute("DELETE FROM ledger_spool WHERE number <= ?", (row[0],))
    return int(row[1])
