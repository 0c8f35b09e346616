"""Replays in the embedded broker: dead letters put back into their queues, and what became of them.

A replayed dead letter knows its copy, by subscription and signal. Nobody tells us when that is settled, and nothing is
paid for it on the way of signals: a copy that is in no queue any more was acked, unless it is among the newer deaths.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...deadletters import queries, transitions
from ...deadletters.death import to_send
from ...deadletters.model import LetterState
from ...deadletters.retention import expired, forget
from ...deadletters.selection import Condition, of_replay
from ...deadletters.transitions import Copy
from ...errors import Backpressure
from ...ledger import Replayed
from ...ledger.facts import Row, to_row
from .deaths import content, put_on_record, unrecorded
from .group import Group
from .records import pack
from .store import Connection

_TOGETHER_BYTES = 8 * 1024 * 1024  # of one transaction
_ROW_BYTES = 2_000  # that a dead letter on record, or one that moves, adds to the log, roughly

_SETTLED = " AND ".join(
    f"NOT EXISTS (SELECT 1 FROM {table} WHERE subscription = queue AND signal = copy)"  # noqa: S608 - names of ours
    for table in ("ready", "claimed", "delayed")
)
_HAS_QUEUE = "EXISTS (SELECT 1 FROM subscriptions WHERE id = queue)"
_REPLAYING = "replay <> '' AND state = 'replaying'"
ACKED = Condition(f"{_REPLAYING} AND {_HAS_QUEUE} AND {_SETTLED}")
ORPHANED = Condition(f"{_REPLAYING} AND NOT {_HAS_QUEUE}")
INTERRUPTED = Condition(
    "replay <> '' AND state = 'waiting' AND replay NOT IN"
    " (SELECT id FROM letter_replays WHERE sender IN (SELECT id FROM sessions))"
)

_GONE = "its subscription does not exist; declare it, and replay this again"
_DELETED = "its subscription was deleted after this was sent, so it may have been handled or not"
_DAMAGED = "it is damaged in the database, so it is not sent"
_LEFT = "the process that was to send it has ended"


def behind(connection: Connection, now: float) -> bool:
    """Tell whether anything has happened that is not on record, or is to be forgotten."""
    return unrecorded(connection) or any(
        connection.execute(each.within("SELECT 1 FROM letters WHERE <condition> LIMIT 1"), each.values).fetchone()
        for each in (ACKED, ORPHANED, INTERRUPTED, expired(now))
    )


def catch_up(group: Group) -> None:
    """Put on record what has happened; a piece of it, if that is much."""
    connection, now = group.connection, group.changes.desk.clock.wall()
    recorded = put_on_record(connection)
    moved = 0
    if not unrecorded(connection):  # a death that is not on record would look like an ack
        moved += transitions.orphaned(connection, ORPHANED, _DELETED, at=now)
        moved += transitions.acked(connection, ACKED, at=now)
        moved += transitions.interrupted(connection, INTERRUPTED, _LEFT, at=now)
    forgotten = forget(connection, now)
    group.changes.written += (recorded + moved + forgotten) * _ROW_BYTES


def send(group: Group, replay: str, limit: int) -> tuple[int, Sequence[Row]]:
    """Put up to ``limit`` dead letters of a replay back; return how many were taken on, and facts of what was sent."""
    desk = group.changes.desk
    if desk.short_of_space:
        raise Backpressure(desk.short_of_space)
    connection, now = group.connection, desk.clock.wall()
    by = _asker(connection, replay)
    copies: list[Copy] = []
    facts: list[Row] = []
    size = taken = 0
    for letter, position, subscription, signal, signal_type in queries.waiting(connection, replay, limit):
        if size > _TOGETHER_BYTES:
            break
        taken += 1
        entry, death = desk.topology.by_name.get(subscription), content(connection, position)
        if entry is None or death is None or death.damaged:
            transitions.returned(connection, [letter], _GONE if entry is None else _DAMAGED, at=now)
            continue
        size += len(death.content.body)
        copies.append(Copy(letter=letter, queue=entry.id, signal=group.requeue(entry.id, pack(to_send(death.content)))))
        # Told with the time of now: a subscriber may have it before this is committed and told.
        facts.append(to_row(now, Replayed(signal=signal, type=signal_type, subscription=subscription, by=by)))
    transitions.sent(connection, copies, at=now)
    group.changes.written += taken * _ROW_BYTES
    return taken, facts


def give_back(group: Group, replays: Sequence[str], note: str) -> int:
    """Make dead again what replays have not sent."""
    connection, now = group.connection, group.changes.desk.clock.wall()
    return sum(
        transitions.interrupted(connection, of_replay(replay, LetterState.WAITING), note, at=now) for replay in replays
    )


def _asker(connection: Connection, replay: str) -> str:
    row = connection.execute("SELECT actor FROM letter_replays WHERE id = ?", (replay,)).fetchone()
    return "" if row is None else str(row[0])
