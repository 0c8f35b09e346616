"""Sessions, their departures and what they respond to: the SQL. As `store`, it decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from .store import Connection, delete_subscription, release_session, touch_topology

# Columns: number, token, socket, address, session, watching.
SessionRow = tuple[int, str, str, str, str, int]
# Columns: number, session, name, reason, at, unsettled; as found: damaged values have any type.
DepartureRow = tuple[int, str, str, object, object, object]
# Columns: number, token, session, name, host, pid, version, started, incarnation, address.
RollRow = tuple[int, str, str, str, str, int, str, str, int, str]

_KEPT = 10_000  # departures, at most
_KEPT_ALWAYS = 256  # however old: the wall clock may have been set meanwhile
_KEPT_SECONDS = 3_600.0
_PRUNED_EVERY = 64  # departures: a look at all of them each time would cost more than they do


# Sessions


def sessions(connection: Connection) -> list[SessionRow]:
    """Return the registered sessions; their processes may be dead."""
    return connection.execute("SELECT id, token, socket, address, session, watching FROM sessions").fetchall()


def roll(connection: Connection) -> list[RollRow]:
    """Return all that is known of the registered sessions, oldest first."""
    return connection.execute(
        "SELECT id, token, session, name, host, pid, version, started, incarnation, address FROM sessions ORDER BY id"
    ).fetchall()


def insert_session(connection: Connection, values: Sequence[object]) -> int:
    """Register a session; return its number.

    Values: (token, socket, address, watching, session, name, host, pid, version, started, incarnation).
    """
    cursor = connection.execute(
        "INSERT INTO sessions"
        " (token, socket, address, watching, session, name, host, pid, version, started, incarnation)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def set_watching(connection: Connection, session: int) -> None:
    """Note that a session wants a hint when others come or end."""
    connection.execute("UPDATE sessions SET watching = 1 WHERE id = ?", (session,))
    touch_topology(connection)


def end_session(connection: Connection, session: int, reason: str, at: float, *, crashed: bool) -> list[int]:
    """Remove a session: claims go back, what was temporary goes; return the subscriptions with new work.

    What it leaves behind is the row of its departure.
    """
    connection.execute(
        "INSERT INTO departures (session, name, reason, at, unsettled)"
        " SELECT session, name, ?, ?, (SELECT count(*) FROM claimed WHERE session = s.id) FROM sessions s WHERE id = ?",
        (reason, at, session),
    )
    _prune(connection, at)
    affected = release_session(connection, session, crashed=crashed)
    for (subscription,) in connection.execute("SELECT id FROM subscriptions WHERE owner = ?", (session,)).fetchall():
        delete_subscription(connection, subscription)
    for table, column in (("consumers", "session"), ("responders", "session"), ("sessions", "id")):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (session,))  # noqa: S608
    touch_topology(connection)
    return affected


# Departures


def last_departure(connection: Connection) -> int:
    """Return the highest number a departure ever had."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'departures'").fetchone()
    return int(row[0]) if row else 0


def departures(connection: Connection, after: int) -> list[DepartureRow]:
    """Return the departures behind number ``after``, oldest first; those long past may be gone."""
    return connection.execute(
        "SELECT number, session, name, reason, at, unsettled FROM departures WHERE number > ? ORDER BY number",
        (after,),
    ).fetchall()


def _prune(connection: Connection, now: float) -> None:
    last = last_departure(connection)
    if last % _PRUNED_EVERY:
        return
    connection.execute(
        "DELETE FROM departures WHERE number <= ? OR (number <= ? AND at < ?)",
        (last - _KEPT, last - _KEPT_ALWAYS, now - _KEPT_SECONDS),
    )


# Responders


def count_responder(connection: Connection, request_type: str, session: int, change: int) -> None:
    """Count one responder of a session more or less."""
    connection.execute(
        "INSERT INTO responders (type, session, count) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET count = count + excluded.count",
        (request_type, session, change),
    )
    connection.execute("DELETE FROM responders WHERE type = ? AND session = ? AND count <= 0", (request_type, session))
    touch_topology(connection)


def responders(connection: Connection) -> list[tuple[str, int]]:
    """Return (type, number of a session that responds to it)."""
    return connection.execute("SELECT type, session FROM responders ORDER BY session").fetchall()
