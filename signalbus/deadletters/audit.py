"""What was done to dead letters, and by whom: written in the transaction of the change itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum

from .model import AuditEntry


class Action(StrEnum):
    """What is noted. Those behind `RESTORE` happen by themselves."""

    REPLAY = "replay"
    CANCEL = "cancel"
    DISCARD = "discard"
    RESTORE = "restore"
    SENT = "sent"
    RETURNED = "returned"
    INTERRUPTED = "interrupted"
    ACKED = "acked"
    DEAD_AGAIN = "dead again"


#: What happens to each dead letter of a replay in its time: shown with the letter, and counted with the replay.
_ONE_BY_ONE = frozenset({Action.SENT, Action.ACKED})
_INSERT = (
    "INSERT INTO letter_audit (at, actor, action, letter, replay, count, note, listed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_COLUMNS = "at, actor, action, letter, replay, count, note"


def write(
    connection: sqlite3.Connection,
    action: Action,
    letters: Sequence[tuple[str, str]],
    *,
    at: float,
    by: str = "",
    note: str = "",
) -> None:
    """Note what was done to each of ``letters``, pairs of its id and its replay; of many, also that they were many."""
    together = action not in _ONE_BY_ONE and len(letters) > 1
    alone = action not in _ONE_BY_ONE and len(letters) == 1
    connection.executemany(
        _INSERT, [(at, by, action.value, letter, replay, 1, note, int(alone)) for letter, replay in letters]
    )
    replays = {replay for _, replay in letters}
    if together:
        replay = replays.pop() if len(replays) == 1 else ""
        connection.execute(_INSERT, (at, by, action.value, "", replay, len(letters), note, 1))


def newest(connection: sqlite3.Connection, limit: int) -> list[AuditEntry]:
    """Return the newest entries, newest first; what was done to many at once is one of them."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM letter_audit WHERE listed = 1 ORDER BY number DESC LIMIT ?",  # noqa: S608
        (max(limit, 0),),
    )
    return [_entry(row) for row in rows]


def of_letter(connection: sqlite3.Connection, letter: str) -> list[AuditEntry]:
    """Return all that was done to one dead letter, oldest first."""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM letter_audit WHERE letter = ? AND letter <> '' ORDER BY number",  # noqa: S608
        (letter,),
    )
    return [_entry(row) for row in rows]


def _entry(row: tuple[float, str, str, str, str, int, str]) -> AuditEntry:
    at, by, action, letter, replay, count, note = row
    moment = datetime.fromtimestamp(at, UTC)
    return AuditEntry(at=moment, by=by, action=action, letter=letter, replay=replay, count=count, note=note)
