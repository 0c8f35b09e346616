"""Recording deaths: a new dead letter, or one that died once more. In a write transaction of the caller."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from . import audit
from .audit import Action
from .death import Death
from .model import LetterState
from .selection import Condition, storable
from .transitions import count_ends, was_sent


@dataclass(frozen=True, slots=True)
class _Known:
    number: int
    id: str
    state: LetterState
    copy: int
    queue: int
    replay: str
    content: int

    def ends_with(self, death: Death) -> bool:
        """Whether a death is the end of a state, rather than the death of another copy."""
        match self.state:
            case LetterState.DEAD:
                return False
            case LetterState.WAITING:
                return bool(self.queue)  # it may have been sent
            case LetterState.REPLAYING:
                return self.copy == death.copy
            case LetterState.ACKED | LetterState.DISCARDED:
                return True


def record(connection: sqlite3.Connection, death: Death) -> int | None:
    """Record a death. Returns the position of a content that is not needed any more, if there is one.

    Of a dead letter that is replaying, only the death of its own copy ends that; another copy, of a publisher who
    repeated himself, is counted, as what was replayed may be acked yet.
    """
    known = _find(connection, death)
    if known is None:
        _insert(connection, death)
        return None
    _count(connection, known, death)
    if known.ends_with(death):
        was_sent(connection, Condition("number = ?", (known.number,)), at=death.at)
        _die_again(connection, known, death)
    return _keep_one(connection, known, death)


def known_death(connection: sqlite3.Connection, death: Death) -> bool:
    """Tell whether this very death was recorded before: then a broker has told of it twice."""
    row = connection.execute(
        "SELECT 1 FROM letter_deaths d JOIN letters l ON l.number = d.letter WHERE l.id = ? AND d.at = ?",
        (death.letter, death.at),
    ).fetchone()
    return row is not None


def _find(connection: sqlite3.Connection, death: Death) -> _Known | None:
    columns = "SELECT number, id, state, coalesce(copy, 0), coalesce(queue, 0), replay, content FROM letters"
    row = None
    if death.copy:  # it knows better than an id, which is made of the content: that may be damaged by now
        row = connection.execute(
            f"{columns} WHERE copy = ? AND subscription = ?", (death.copy, storable(death.subscription))
        ).fetchone()
    if row is None:
        row = connection.execute(f"{columns} WHERE id = ?", (death.letter,)).fetchone()
    return None if row is None else _Known(row[0], row[1], LetterState(row[2]), *row[3:])


def _insert(connection: sqlite3.Connection, death: Death) -> None:
    content = death.content
    number = connection.execute(
        "INSERT INTO letters (id, state, subscription, signal, type, reason, detail, error, place, cluster, attempt,"
        " crashes, deaths, died, changed, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)"
        " RETURNING number",
        (
            death.letter,
            LetterState.DEAD.value,
            *map(storable, (death.subscription, content.id, content.type)),
            *_cause(death),
            *(death.at, death.at, death.position),
        ),
    ).fetchone()[0]
    _note_time(connection, number, death)


def _count(connection: sqlite3.Connection, known: _Known, death: Death) -> None:
    connection.execute(
        "UPDATE letters SET reason = ?, detail = ?, error = ?, place = ?, cluster = ?, attempt = ?, crashes = ?,"
        " deaths = deaths + 1, died = ? WHERE number = ?",
        (*_cause(death), death.at, known.number),
    )
    _note_time(connection, known.number, death)


def _die_again(connection: sqlite3.Connection, known: _Known, death: Death) -> None:
    connection.execute(
        "UPDATE letters SET state = ?, changed = ?, actor = '', note = '', replay = '' WHERE number = ?",
        (LetterState.DEAD.value, death.at, known.number),
    )
    audit.write(connection, Action.DEAD_AGAIN, [(known.id, known.replay)], at=death.at, note=storable(death.detail))
    if known.replay:
        count_ends(connection, {known.replay: 1}, "died_again")


def _keep_one(connection: sqlite3.Connection, known: _Known, death: Death) -> int:
    """Keep the newer content, which has the newest history, unless it is damaged; return the position of the other."""
    if death.damaged:
        return death.position
    connection.execute("UPDATE letters SET content = ? WHERE number = ?", (death.position, known.number))
    return known.content


def _note_time(connection: sqlite3.Connection, number: int, death: Death) -> None:
    if not death.copy:
        connection.execute("INSERT OR IGNORE INTO letter_deaths (letter, at) VALUES (?, ?)", (number, death.at))


def _cause(death: Death) -> tuple[str | int, ...]:
    texts = (death.reason.value, death.detail, death.error, death.place, death.group)
    return (*map(storable, texts), death.attempt, death.crashes)
