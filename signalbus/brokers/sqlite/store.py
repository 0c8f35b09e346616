"""The SQL of the embedded broker, as functions over a connection. Decides nothing, begins and ends no transaction.

Statements take whole batches: sqlite3 gives up the interpreter lock at each step of a statement, and a busy event loop
may keep it for milliseconds each time. Lists of integers therefore travel as one JSON array. Moves between tables
replace what is in the way: only a damaged key can be, and it must not stop the queue.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

Connection = sqlite3.Connection
# (signal, attempt, crashes, history, fanout, checksum, head, body), as found: damaged values have any type
ClaimedRow = tuple[int, object, object, object, object, object, object, object]
# The columns of `DEATH_COLUMNS`, as found.
DeadRow = tuple[int, object, object, object, object, object, object, object, object, object, object, object, object]

DEATH_COLUMNS = (
    "position, subscription, signal, fanout, checksum, head, body, reason, detail, attempt, crashes, at, history"
)
_ROWS_PER_INSERT = 32  # beyond that, preparing and binding costs as much as it saves


def _insert_signals(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?)"] * rows)
    return f"INSERT INTO signals (seq, fanout, checksum, head, body) VALUES {values}"  # noqa: S608


_INSERT_ONE, _INSERT_MANY = _insert_signals(1), _insert_signals(_ROWS_PER_INSERT)
_WIDTH = 5 * _ROWS_PER_INSERT


def listed(numbers: Iterable[int]) -> str:
    """Return integers as the JSON array that the statements below take."""
    return "[" + ",".join(map(str, numbers)) + "]"


# Signals


def last_seq(connection: Connection) -> int:
    """Return the highest number a signal ever had."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'signals'").fetchone()
    return int(row[0]) if row else 0


def insert_signals(connection: Connection, values: Sequence[object]) -> None:
    """Insert signals from a flat sequence of (seq, fanout, checksum, head, body)."""
    full = len(values) - len(values) % _WIDTH
    for start in range(0, full, _WIDTH):
        connection.execute(_INSERT_MANY, values[start : start + _WIDTH])
    for start in range(full, len(values), 5):
        connection.execute(_INSERT_ONE, values[start : start + 5])


def insert_ready(connection: Connection, subscription: int, signals: str) -> None:
    """Queue new signals for a subscription."""
    connection.execute(
        "INSERT INTO ready (subscription, signal) SELECT ?, value FROM json_each(?)", (subscription, signals)
    )


def insert_fanout(connection: Connection, pending: int, signals: str) -> None:
    """Note that signals go to several subscriptions."""
    connection.execute("INSERT INTO fanout (signal, pending) SELECT value, ? FROM json_each(?)", (pending, signals))


def forget_signals(connection: Connection, signals: str, *, shared: bool) -> None:
    """Count one delivery less of each signal, and remove those that have none left."""
    if not shared:
        connection.execute("DELETE FROM signals WHERE seq IN (SELECT value FROM json_each(?))", (signals,))
        return
    connection.execute(
        "UPDATE fanout SET pending = pending - 1 WHERE signal IN (SELECT value FROM json_each(?))", (signals,)
    )
    connection.execute(
        "DELETE FROM signals WHERE seq IN (SELECT value FROM json_each(?1)"
        " EXCEPT SELECT signal FROM fanout WHERE pending > 0 AND signal IN (SELECT value FROM json_each(?1)))",
        (signals,),
    )
    connection.execute(
        "DELETE FROM fanout WHERE pending <= 0 AND signal IN (SELECT value FROM json_each(?))", (signals,)
    )


# Claims


def peek(connection: Connection, subscription: int, limit: int) -> tuple[int, int]:
    """Return how many of the oldest ``limit`` deliveries there are, and the last signal among them."""
    count, last = connection.execute(
        "SELECT count(*), max(signal) FROM (SELECT signal FROM ready WHERE subscription = ? ORDER BY signal LIMIT ?)",
        (subscription, limit),
    ).fetchone()
    return count, last or 0


def claim(connection: Connection, subscription: int, last: int, session: int, batch: int) -> None:
    """Give the ready deliveries up to signal ``last`` to a session."""
    connection.execute(
        "INSERT OR REPLACE INTO claimed (subscription, signal, attempt, crashes, history, session, batch)"
        " SELECT subscription, signal, attempt, crashes, history, ?, ? FROM ready"
        " WHERE subscription = ? AND signal <= ?",
        (session, batch, subscription, last),
    )
    connection.execute("DELETE FROM ready WHERE subscription = ? AND signal <= ?", (subscription, last))


def read_batch(connection: Connection, subscription: int, session: int, batch: int) -> list[ClaimedRow]:
    """Return the claimed deliveries of one batch with their signals, oldest first."""
    return connection.execute(
        "SELECT c.signal, c.attempt, c.crashes, c.history, s.fanout, s.checksum, s.head, s.body"
        " FROM claimed c LEFT JOIN signals s ON s.seq = c.signal"
        " WHERE c.subscription = ? AND c.session = ? AND c.batch = ? ORDER BY c.signal",
        (subscription, session, batch),
    ).fetchall()


def owned(connection: Connection, subscription: int, session: int, signals: str) -> int:
    """Return how many of these deliveries the session holds."""
    row = connection.execute(
        "SELECT count(*) FROM claimed WHERE subscription = ? AND session = ?"
        " AND signal IN (SELECT value FROM json_each(?))",
        (subscription, session, signals),
    ).fetchone()
    return int(row[0])


def drop_claims(connection: Connection, subscription: int, signals: str) -> None:
    """Remove claimed deliveries that are settled for good."""
    connection.execute(
        "DELETE FROM claimed WHERE subscription = ? AND signal IN (SELECT value FROM json_each(?))",
        (subscription, signals),
    )


def release(connection: Connection, subscription: int, signals: str) -> None:
    """Put claimed deliveries back, as they were."""
    connection.execute(
        "INSERT OR REPLACE INTO ready (subscription, signal, attempt, crashes, history)"
        " SELECT subscription, signal, attempt, crashes, history FROM claimed"
        " WHERE subscription = ? AND signal IN (SELECT value FROM json_each(?))",
        (subscription, signals),
    )
    drop_claims(connection, subscription, signals)


def release_session(connection: Connection, session: int, *, crashed: bool) -> list[int]:
    """Put back everything a session holds; return the subscriptions this concerns. ``crashed`` counts."""
    affected = connection.execute("SELECT DISTINCT subscription FROM claimed WHERE session = ?", (session,)).fetchall()
    if affected:
        connection.execute(
            "INSERT OR REPLACE INTO ready (subscription, signal, attempt, crashes, history)"
            " SELECT subscription, signal, attempt, crashes + ?, history FROM claimed WHERE session = ?",
            (int(crashed), session),
        )
        connection.execute("DELETE FROM claimed WHERE session = ?", (session,))
    return [row[0] for row in affected]


def retry_now(connection: Connection, subscription: int, signal: int, history: bytes | None) -> None:
    """Put a claimed delivery back as its next attempt."""
    connection.execute(
        "INSERT OR REPLACE INTO ready (subscription, signal, attempt, crashes, history)"
        " SELECT subscription, signal, attempt + 1, crashes, ? FROM claimed WHERE subscription = ? AND signal = ?",
        (history, subscription, signal),
    )
    drop_claims(connection, subscription, listed([signal]))


def retry_later(
    connection: Connection,
    subscription: int,
    signal: int,
    history: bytes | None,
    due: tuple[float, float, float],
) -> None:
    """Put a claimed delivery aside as its next attempt; ``due`` is (boot clock, wall clock, delay)."""
    connection.execute(
        "INSERT OR REPLACE INTO delayed (subscription, signal, attempt, crashes, history, due, due_wall, delay)"
        " SELECT subscription, signal, attempt + 1, crashes, ?, ?, ?, ? FROM claimed"
        " WHERE subscription = ? AND signal = ?",
        (history, *due, subscription, signal),
    )
    drop_claims(connection, subscription, listed([signal]))


# Delays


def next_due(connection: Connection, subscription: int) -> float | None:
    """Return when the next delayed delivery is due, in seconds on the boot clock."""
    row = connection.execute("SELECT min(due) FROM delayed WHERE subscription = ?", (subscription,)).fetchone()
    return None if row[0] is None else float(row[0])


def wake_delayed(connection: Connection, subscription: int, now: float) -> None:
    """Make delayed deliveries ready that are due."""
    connection.execute(
        "INSERT OR REPLACE INTO ready (subscription, signal, attempt, crashes, history)"
        " SELECT subscription, signal, attempt, crashes, history FROM delayed WHERE subscription = ? AND due <= ?",
        (subscription, now),
    )
    connection.execute("DELETE FROM delayed WHERE subscription = ? AND due <= ?", (subscription, now))


def rebase_delayed(connection: Connection, boot: str, now: float, now_wall: float) -> None:
    """Count delays from another boot on, unless that is done; see `clock.remaining_after_reboot`."""
    connection.execute(
        "UPDATE delayed SET due = ? + min(max(due_wall - ?, 0.0), delay) WHERE (SELECT boot FROM meta) <> ?",
        (now, now_wall, boot),
    )
    connection.execute("UPDATE meta SET boot = ? WHERE boot <> ?", (boot, boot))


# Dead letters


def bury(
    connection: Connection,
    subscription: int,
    signal: int,
    reason: tuple[str, str],
    at: float,
    history: bytes | None,
) -> None:
    """Move a claimed delivery to the dead letters, with a copy of its signal."""
    connection.execute(
        "INSERT INTO dead_letters"
        " (subscription, signal, fanout, checksum, head, body, reason, detail, attempt, crashes, at, history)"
        " SELECT coalesce(n.name, ''), c.signal, s.fanout, s.checksum, s.head, s.body, ?, ?, c.attempt, c.crashes, ?, ?"
        " FROM claimed c LEFT JOIN signals s ON s.seq = c.signal LEFT JOIN subscriptions n ON n.id = c.subscription"
        " WHERE c.subscription = ? AND c.signal = ?",
        (*reason, at, history, subscription, signal),
    )
    drop_claims(connection, subscription, listed([signal]))


def dead_letters(connection: Connection, limit: int) -> list[DeadRow]:
    """Return the oldest contents of what is dead; not of what was replayed or discarded."""
    return connection.execute(
        f"SELECT {DEATH_COLUMNS} FROM dead_letters WHERE NOT EXISTS"  # noqa: S608
        " (SELECT 1 FROM letters WHERE content = position AND state <> 'dead') ORDER BY position LIMIT ?",
        (limit,),
    ).fetchall()


# Subscriptions, consumers


def topology_counter(connection: Connection) -> int:
    """Return the counter that grows with each change of subscriptions, consumers and sessions."""
    return int(connection.execute("SELECT topology FROM meta").fetchone()[0])


def touch_topology(connection: Connection) -> None:
    """Make everybody read subscriptions, consumers and sessions anew."""
    connection.execute("UPDATE meta SET topology = topology + 1")


def subscriptions(connection: Connection) -> list[tuple[int, str, str, int | None]]:
    """Return (id, name, patterns, owner)."""
    return connection.execute("SELECT id, name, patterns, owner FROM subscriptions ORDER BY id").fetchall()


def insert_subscription(connection: Connection, name: str, patterns: Sequence[str], owner: int | None) -> None:
    """Create a subscription."""
    connection.execute(
        "INSERT INTO subscriptions (name, patterns, owner) VALUES (?, ?, ?)",
        (name, json.dumps(patterns), owner),
    )


def update_patterns(connection: Connection, subscription: int, patterns: Sequence[str]) -> None:
    """Replace the patterns of a subscription."""
    connection.execute("UPDATE subscriptions SET patterns = ? WHERE id = ?", (json.dumps(patterns), subscription))


def delete_subscription(connection: Connection, subscription: int) -> None:
    """Delete a subscription; its deliveries are removed piece by piece, by `purge`."""
    connection.execute("DELETE FROM subscriptions WHERE id = ?", (subscription,))
    connection.execute("DELETE FROM consumers WHERE subscription = ?", (subscription,))
    connection.execute("INSERT OR IGNORE INTO purges (subscription) VALUES (?)", (subscription,))


def purge(connection: Connection, limit: int) -> bool:
    """Remove up to ``limit`` deliveries of a deleted subscription; tell whether there may be more."""
    row = connection.execute("SELECT subscription FROM purges LIMIT 1").fetchone()
    if row is None:
        return False
    for table in ("ready", "claimed", "delayed"):
        found = connection.execute(
            f"SELECT json_group_array(signal) FROM (SELECT signal FROM {table} WHERE subscription = ? LIMIT ?)",  # noqa: S608
            (row[0], limit),
        ).fetchone()[0]
        if found != "[]":
            connection.execute(
                f"DELETE FROM {table} WHERE subscription = ?"  # noqa: S608
                " AND signal IN (SELECT value FROM json_each(?))",
                (row[0], found),
            )
            forget_signals(connection, found, shared=True)
            return True
    connection.execute("DELETE FROM purges WHERE subscription = ?", row)
    return True


def consumers(connection: Connection) -> list[tuple[int, int, int]]:
    """Return (subscription, session, count)."""
    return connection.execute("SELECT subscription, session, count FROM consumers").fetchall()


def count_consumer(connection: Connection, subscription: int, session: int, change: int) -> None:
    """Count one consumer of a session more or less."""
    connection.execute(
        "INSERT INTO consumers (subscription, session, count) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET count = count + excluded.count",
        (subscription, session, change),
    )
    connection.execute(
        "DELETE FROM consumers WHERE subscription = ? AND session = ? AND count <= 0", (subscription, session)
    )


# Looks


def data_version(connection: Connection) -> int:
    """Return a number that changes whenever another connection has committed."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def has_ready(connection: Connection, subscription: int) -> bool:
    """Tell whether there is something to claim."""
    row = connection.execute("SELECT 1 FROM ready WHERE subscription = ? LIMIT 1", (subscription,)).fetchone()
    return row is not None


def queue_counts(connection: Connection) -> list[tuple[str, str, int | None, int, int, int, int, object]]:
    """Return (name, patterns, owner, ready, claimed, delayed, consumers, head of the oldest ready) by name."""
    return connection.execute(
        "SELECT name, patterns, owner,"
        " (SELECT count(*) FROM ready WHERE subscription = s.id),"
        " (SELECT count(*) FROM claimed WHERE subscription = s.id),"
        " (SELECT count(*) FROM delayed WHERE subscription = s.id),"
        " (SELECT coalesce(sum(count), 0) FROM consumers WHERE subscription = s.id),"
        " (SELECT head FROM signals WHERE seq = (SELECT min(signal) FROM ready WHERE subscription = s.id))"
        " FROM subscriptions s ORDER BY name"
    ).fetchall()


def checkpoint(connection: Connection, mode: str) -> tuple[int, int, int]:
    """Copy the log into the database; return (blocked, pages in the log, pages copied)."""
    blocked, pages, copied = connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
    return blocked, pages, copied
