"""What becomes of dead letters: each step an UPDATE that compares the state before it sets the next, and is audited.

Functions over a connection, inside a write transaction of the caller. ``at`` is in seconds since 1970.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from . import audit
from .audit import Action
from .model import LetterQuery, LetterState
from .queries import count
from .selection import Condition, fitting, in_state, of_replay, one_of, storable

HELD = (LetterState.WAITING, LetterState.REPLAYING)
NOTE_CHARACTERS = 500

# What `queue` says of a waiting letter, where sending it is no part of the transaction.
IN_HAND = 1  # is being sent
UNSURE = 2  # may have been sent, and is to be sent again
_MAY_BE_SENT = Condition("queue IS NOT NULL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Doing:
    """Who does what, when; ``note`` stays with the letters."""

    action: Action
    at: float
    by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A replay that begins. ``sender``: the number of the session that sends, if its death is to end the replay."""

    id: str
    by: str
    at: float
    rate: float
    sender: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """What was sent of a dead letter: where to, and as which signal, where a broker has numbers for them."""

    letter: int
    queue: int | None = None
    signal: int | None = None


def claim(connection: sqlite3.Connection, query: LetterQuery, replay: Claim) -> None:
    """Give all that fit and are dead to a new replay. Raises `ConfigError` for a query that cannot be."""
    wanted = fitting(connection, query, any_state=True)
    taken = count(connection, wanted & in_state(*HELD))
    doing = Doing(action=Action.REPLAY, at=replay.at, by=replay.by)
    claimed = _move(connection, wanted, LetterState.DEAD, LetterState.WAITING, doing, replay=replay.id)
    mine = of_replay(replay.id, LetterState.WAITING)
    connection.execute(mine.within("UPDATE letters SET queue = NULL, copy = NULL WHERE <condition>"), mine.values)
    connection.execute(
        "INSERT INTO letter_replays (id, actor, started, rate, sender, total, taken) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (replay.id, clean(replay.by), replay.at, replay.rate, replay.sender, len(claimed), taken),
    )


def sent(connection: sqlite3.Connection, copies: Sequence[Copy], *, at: float) -> int:
    """Note that waiting dead letters were sent; return how many were waiting still."""
    connection.executemany(
        "UPDATE letters SET queue = ?, copy = ? WHERE number = ? AND state = ?",
        [(copy.queue, copy.signal, copy.letter, LetterState.WAITING.value) for copy in copies],
    )
    which = one_of("number", (copy.letter for copy in copies))
    doing = Doing(action=Action.SENT, at=at)
    return len(_move(connection, which, LetterState.WAITING, LetterState.REPLAYING, doing, replay=None))


def returned(connection: sqlite3.Connection, letters: Iterable[int], note: str, *, at: float) -> int:
    """Note that dead letters could not be sent, and why; return how many were waiting."""
    doing = Doing(action=Action.RETURNED, at=at, note=note)
    return _end(connection, one_of("number", letters), LetterState.WAITING, doing, "returned")


def next_up(connection: sqlite3.Connection, replay: str, limit: int) -> list[int]:
    """Return up to so many letters of a replay that nobody has in hand, oldest first."""
    rows = connection.execute(
        "SELECT number FROM letters WHERE replay = ? AND replay <> '' AND state = 'waiting'"
        " AND (queue IS NULL OR queue = ?) ORDER BY died, number LIMIT ?",
        (replay, UNSURE, limit),
    )
    return [int(row[0]) for row in rows]


def take_up(connection: sqlite3.Connection, letters: Iterable[int]) -> None:
    """Take letters in hand, to send them.

    For brokers that cannot send and note that in one transaction: whatever happens now, each may have been sent.
    """
    _mark(connection, letters, IN_HAND)


def laid_down(connection: sqlite3.Connection, letters: Iterable[int]) -> None:
    """Lay down what was taken up and is to be sent again, as it is not known whether it was."""
    _mark(connection, letters, UNSURE)


def dropped(connection: sqlite3.Connection) -> None:
    """Lay down everything: whoever had it in hand is gone."""
    connection.execute(
        "UPDATE letters SET queue = ? WHERE replay <> '' AND state = 'waiting' AND queue = ?", (UNSURE, IN_HAND)
    )


def was_sent(connection: sqlite3.Connection, which: Condition, *, at: float) -> None:
    """Note that what was taken up has been sent, as its end is heard of before whoever sends could tell."""
    doing = Doing(action=Action.SENT, at=at)
    _move(connection, which & _MAY_BE_SENT, LetterState.WAITING, LetterState.REPLAYING, doing, replay=None)


def acked(connection: sqlite3.Connection, which: Condition, *, at: float) -> int:
    """Note that replays came to a good end; return how many."""
    doing = Doing(action=Action.ACKED, at=at)
    return _end(connection, which, LetterState.REPLAYING, doing, "acked", end=LetterState.ACKED)


def orphaned(connection: sqlite3.Connection, which: Condition, note: str, *, at: float) -> int:
    """Note that replays died with their subscription; return how many."""
    doing = Doing(action=Action.DEAD_AGAIN, at=at, note=note)
    return _end(connection, which, LetterState.REPLAYING, doing, "died_again")


def interrupted(connection: sqlite3.Connection, which: Condition, note: str, *, at: float) -> int:
    """Note that nobody is left to send what waits; return how many there are."""
    doing = Doing(action=Action.INTERRUPTED, at=at, note=note)
    return _end(connection, which, LetterState.WAITING, doing, "cancelled")


def cancel(connection: sqlite3.Connection, replay: str, *, at: float, by: str) -> int:
    """Make dead again what a replay has certainly not sent; return how many that were."""
    doing = Doing(action=Action.CANCEL, at=at, by=by)
    which = of_replay(replay, LetterState.WAITING) & Condition("queue IS NULL")
    return _end(connection, which, LetterState.WAITING, doing, "cancelled")


def discard(connection: sqlite3.Connection, query: LetterQuery, *, at: float, by: str, note: str) -> int:
    """Discard all that fit and are dead; return how many."""
    doing = Doing(action=Action.DISCARD, at=at, by=by, note=note)
    wanted = fitting(connection, query, any_state=True)
    return len(_move(connection, wanted, LetterState.DEAD, LetterState.DISCARDED, doing))


def restore(connection: sqlite3.Connection, query: LetterQuery, *, at: float, by: str) -> int:
    """Make discarded or stuck dead letters dead again; return how many. Raises `ConfigError`, see `DeadLetters`."""
    doing = Doing(action=Action.RESTORE, at=at, by=by)
    wanted = fitting(connection, query, any_state=True)
    if query.states == frozenset({LetterState.DISCARDED}):
        return len(_move(connection, wanted, LetterState.DISCARDED, LetterState.DEAD, doing))
    if query.states != frozenset({LetterState.REPLAYING}):
        raise ConfigError("restore what is 'discarded', or what is stuck in 'replaying'; name one of the two as state")
    if not query.ids:
        raise ConfigError("what is replaying is restored by its whole id only: a second copy may be on its way then")
    return _end(connection, wanted, LetterState.REPLAYING, doing, "cancelled")


# The steps


def _mark(connection: sqlite3.Connection, letters: Iterable[int], mark: int) -> None:
    which = one_of("number", letters)
    connection.execute(
        which.within("UPDATE letters SET queue = ? WHERE <condition> AND state = 'waiting'"), (mark, *which.values)
    )


def _end(
    connection: sqlite3.Connection,
    which: Condition,
    start: LetterState,
    doing: Doing,
    counter: str,
    *,
    end: LetterState = LetterState.DEAD,
) -> int:
    """Take letters out of the hands of their replays, and count that there."""
    moved = _move(connection, which, start, end, doing)
    ended: dict[str, int] = {}
    for _, replay in moved:
        ended[replay] = ended.get(replay, 0) + 1
    count_ends(connection, ended, counter)
    return len(moved)


def count_ends(connection: sqlite3.Connection, ended: dict[str, int], counter: str) -> None:
    """Count how dead letters left their replays; ``counter`` is a column of ours."""
    connection.executemany(
        f"UPDATE letter_replays SET {counter} = {counter} + ? WHERE id = ?",  # noqa: S608
        [(count, replay) for replay, count in ended.items()],
    )


def _move(
    connection: sqlite3.Connection,
    which: Condition,
    start: LetterState,
    end: LetterState,
    doing: Doing,
    *,
    replay: str | None = "",
) -> list[tuple[str, str]]:
    """Set the next state of what is in the one before; return ids, and the replays that had or have them.

    ``replay`` has them afterwards; None leaves that as it is.
    """
    note, by = clean(doing.note), clean(doing.by)
    rows = connection.execute(
        which.within("SELECT number, id, replay FROM letters WHERE (<condition>) AND state = ?"),
        (*which.values, start.value),
    ).fetchall()
    if not rows:
        return []
    numbers = one_of("number", (row[0] for row in rows))
    actor, kept = ("actor", ()) if replay is None else ("?", (by,))
    connection.execute(
        f"UPDATE letters SET state = ?, changed = ?, note = ?, replay = coalesce(?, replay), actor = {actor}"  # noqa: S608
        f" WHERE {numbers.sql} AND state = ?",
        (end.value, doing.at, note, replay, *kept, *numbers.values, start.value),
    )
    moved = [(letter, replay or before) for _, letter, before in rows]
    audit.write(connection, doing.action, moved, at=doing.at, by=by, note=note)
    return moved


def clean(text: str) -> str:
    """Return a text of somebody's, bounded, as it can be stored."""
    return storable(text[:NOTE_CHARACTERS])
