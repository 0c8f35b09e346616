"""What is asked of dead letters: groups, pages, ids by prefix, replays. Functions over a connection that only read."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple, cast

from ..delivery import DeadReason
from ..errors import ConfigError
from .model import MIN_PREFIX, LetterGroup, LetterPage, LetterQuery, LetterState, LetterSummary, Replay
from .selection import Condition, behind, cursor_at, fitting, of_replay, storable

CANDIDATES = 20
MAX_PAGE = 1_000
MAX_TYPES = 100  # of a group: a type may be made up of an id

_COLUMNS = (
    "id, state, subscription, signal, type, reason, detail, error, place, cluster, attempt, crashes, deaths, died,"
    " changed, actor, note"
)
_REPLAYS = (
    "SELECT id, actor, started, rate, total, acked, died_again, returned, cancelled, taken,"
    " (SELECT count(*) FROM letters l WHERE l.replay = r.id AND l.replay <> '' AND l.state = 'waiting'),"
    " (SELECT count(*) FROM letters l WHERE l.replay = r.id AND l.replay <> '' AND l.state = 'replaying')"
    " FROM letter_replays r"
)


def groups(connection: sqlite3.Connection, query: LetterQuery) -> list[LetterGroup]:
    """See `DeadLetters.groups`."""
    where = fitting(connection, query)
    parts: dict[str, list[_Part]] = {}
    # In the order of its index: counted as it is read, without the rows themselves.
    for cluster, *part in connection.execute(
        where.within(
            "SELECT cluster, state, type, count(*), min(died), max(died) FROM letters"
            " WHERE <condition> GROUP BY cluster, state, type"
        ),
        where.values,
    ):
        parts.setdefault(cluster, []).append(_Part(*part))
    found = [_group(connection, cluster, each, where) for cluster, each in parts.items()]
    return sorted(found, key=lambda group: (group.newest, group.id), reverse=True)


def page(connection: sqlite3.Connection, query: LetterQuery) -> LetterPage:
    """See `DeadLetters.page`. At most 1000 at once."""
    limit = min(max(query.limit, 1), MAX_PAGE)
    where = fitting(connection, query)
    total = count(connection, where)
    if query.after:
        where &= behind(query.after)
    rows = connection.execute(
        where.within(
            f"SELECT {_COLUMNS}, number FROM letters WHERE <condition> ORDER BY died DESC, number DESC LIMIT ?"  # noqa: S608
        ),
        (*where.values, limit + 1),
    ).fetchall()
    shown = rows[:limit]
    following = cursor_at(shown[-1][13], shown[-1][-1]) if len(rows) > limit else ""
    return LetterPage(letters=tuple(_summary(row[:-1]) for row in shown), total=total, next=following)


def find(connection: sqlite3.Connection, prefix: str) -> list[LetterSummary]:
    """See `DeadLetters.find`. Raises `ConfigError` for less than six characters."""
    wanted = storable(prefix.strip())
    if len(wanted) < MIN_PREFIX:
        raise ConfigError(f"{prefix!a} is too short for an id; give at least {MIN_PREFIX} characters of it")
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM letters WHERE number IN ("  # noqa: S608
        "SELECT number FROM letters WHERE id >= ?1 AND id < ?1 || char(0x10FFFF)"
        " UNION SELECT number FROM letters WHERE signal >= ?1 AND signal < ?1 || char(0x10FFFF))"
        " ORDER BY died DESC, number DESC LIMIT ?2",
        (wanted, CANDIDATES),
    )
    return [_summary(row) for row in rows]


def get(connection: sqlite3.Connection, letter: str) -> tuple[LetterSummary, int] | None:
    """Return a dead letter, and the position of its content."""
    row = connection.execute(
        f"SELECT {_COLUMNS}, content FROM letters WHERE id = ?",  # noqa: S608
        (storable(letter),),
    ).fetchone()
    return None if row is None else (_summary(row[:-1]), row[-1])


def progress(connection: sqlite3.Connection, replay: str) -> Replay | None:
    """See `DeadLetters.progress`."""
    row = connection.execute(f"{_REPLAYS} WHERE r.id = ?", (storable(replay),)).fetchone()
    return None if row is None else _replay(row)


def replays(connection: sqlite3.Connection, limit: int) -> list[Replay]:
    """See `DeadLetters.replays`."""
    rows = connection.execute(f"{_REPLAYS} ORDER BY number DESC LIMIT ?", (max(limit, 0),))
    return [_replay(row) for row in rows]


def waiting(connection: sqlite3.Connection, replay: str, limit: int) -> list[tuple[int, int, str, str, str]]:
    """Return (number, position of the content, subscription, signal, type) of what is to be sent, oldest first."""
    where = of_replay(replay, LetterState.WAITING)
    return connection.execute(
        where.within(
            "SELECT number, content, subscription, signal, type FROM letters"
            " WHERE <condition> ORDER BY died, number LIMIT ?"
        ),
        (*where.values, limit),
    ).fetchall()


def unfinished(connection: sqlite3.Connection) -> list[tuple[str, float]]:
    """Return the replays that have something to send, oldest first, with their rates."""
    return connection.execute(
        "SELECT id, rate FROM letter_replays WHERE id IN"
        " (SELECT replay FROM letters WHERE replay <> '' AND state = 'waiting') ORDER BY number"
    ).fetchall()


def awaited(connection: sqlite3.Connection) -> list[str]:
    """Return the subscriptions that have something of a replay to settle."""
    rows = connection.execute(
        "SELECT DISTINCT subscription FROM letters WHERE replay <> '' AND state = 'replaying' ORDER BY subscription"
    )
    return [str(row[0]) for row in rows]


def count(connection: sqlite3.Connection, where: Condition) -> int:
    """Return how many dead letters there are of a kind."""
    statement = where.within("SELECT count(*) FROM letters WHERE <condition>")
    return int(connection.execute(statement, where.values).fetchone()[0])


def _summary(row: Sequence[object]) -> LetterSummary:
    texts = cast("tuple[str, ...]", row)
    numbers = cast("tuple[int, ...]", row)
    return LetterSummary(
        id=texts[0],
        state=LetterState(texts[1]),
        subscription=texts[2],
        signal=texts[3],
        type=texts[4],
        reason=reason_of(texts[5]),
        detail=texts[6],
        error=texts[7],
        place=texts[8],
        group=texts[9],
        attempt=numbers[10],
        crashes=numbers[11],
        deaths=numbers[12],
        died=_moment(row[13]),
        changed=_moment(row[14]),
        by=texts[15],
        note=texts[16],
    )


class _Part(NamedTuple):
    """The letters of a group that are in one state, and of one type."""

    state: str
    type: str
    number: int
    oldest: float
    newest: float


def _group(connection: sqlite3.Connection, cluster: str, parts: Sequence[_Part], where: Condition) -> LetterGroup:
    newest = max(part.newest for part in parts)
    last = where & Condition("cluster = ? AND died = ?", (cluster, newest))
    subscription, reason, error, place, detail = connection.execute(
        last.within("SELECT subscription, reason, error, place, detail FROM letters WHERE <condition> LIMIT 1"),
        last.values,
    ).fetchone()
    counts: dict[LetterState, int] = {}
    for part in parts:
        counts[LetterState(part.state)] = counts.get(LetterState(part.state), 0) + part.number
    return LetterGroup(
        id=cluster,
        subscription=subscription,
        reason=reason_of(reason),
        error=error,
        place=place,
        counts=counts,
        types=tuple(sorted({part.type for part in parts})[:MAX_TYPES]),
        oldest=_moment(min(part.oldest for part in parts)),
        newest=_moment(newest),
        sample=detail,
    )


def _replay(row: tuple[str, str, float, float, int, int, int, int, int, int, int, int]) -> Replay:
    letter, by, started, rate, total, acked, died_again, returned, cancelled, taken, waits, pending = row
    return Replay(
        id=letter,
        by=by,
        started=_moment(started),
        rate=rate,
        total=total,
        waiting=waits,
        pending=pending,
        acked=acked,
        died_again=died_again,
        returned=returned,
        cancelled=cancelled,
        taken=taken,
    )


def reason_of(stored: str) -> DeadReason:
    """Return a stored reason; one that another version wrote counts as the broker's."""
    try:
        return DeadReason(stored)
    except ValueError:
        return DeadReason.BROKER


def _moment(seconds: object) -> datetime:
    return datetime.fromtimestamp(cast("float", seconds), UTC)
