"""Deaths on record: what others buried becomes a dead letter that can be asked for. Also used for a router's file.

Functions over a connection; those that write do so in a transaction of the caller.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...deadletters.death import Death
from ...deadletters.recording import record
from .looks import death
from .store import DEATH_COLUMNS, Connection, listed

_TOGETHER = 500  # deaths of a transaction: bounds how long others wait for the lock
_TOGETHER_BYTES = 16 * 1024 * 1024


def unrecorded(connection: Connection) -> bool:
    """Tell whether there are deaths that are not on record yet."""
    row = connection.execute(
        "SELECT EXISTS (SELECT 1 FROM dead_letters WHERE position > (SELECT recorded FROM letter_meta))"
    ).fetchone()
    return bool(row[0])


def put_on_record(connection: Connection) -> int:
    """Record the oldest deaths that are not yet; return how many."""
    found = list(_next(connection))
    if not found:
        return 0
    superseded = [position for each in found if (position := record(connection, each)) is not None]
    if superseded:
        connection.execute(
            "DELETE FROM dead_letters WHERE position IN (SELECT value FROM json_each(?))", (listed(superseded),)
        )
    connection.execute("UPDATE letter_meta SET recorded = ?", (found[-1].position,))
    return len(found)


def content(connection: Connection, position: int) -> Death | None:
    """Return a death with its content by its position, if that is still there."""
    row = connection.execute(f"SELECT {DEATH_COLUMNS} FROM dead_letters WHERE position = ?", (position,)).fetchone()  # noqa: S608
    return None if row is None else death(row)


def _next(connection: Connection) -> Iterator[Death]:
    rows = connection.execute(
        f"SELECT {DEATH_COLUMNS} FROM dead_letters"  # noqa: S608
        " WHERE position > (SELECT recorded FROM letter_meta) ORDER BY position LIMIT ?",
        (_TOGETHER,),
    )
    size = 0
    for row in rows:
        found = death(row)
        yield found
        size += len(found.content.body)
        if size > _TOGETHER_BYTES:
            return
