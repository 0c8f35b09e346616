"""Appending batches of facts, in a transaction of the caller. Idempotent: a batch that comes twice changes nothing.

Everything is written in batches, and in the order of time, so that only the ends of tables and indices are touched.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

import orjson

from ..ledger import Batch, writable
from ..ledger.facts import FIELDS, SESSION_STEPS, Row
from .bulk import insert
from .fields import hashes
from .records import first_heard, has_failed, packed, place_of, progress

NOWHERE = 0  # the subscription of requests, and of signals that went nowhere
SEGMENT_BITS = 40
# Where the fields are in the rows of publications.
_DATA = {kind: fields.index("data") + 2 for kind, fields in FIELDS.items() if "data" in fields}
_SUBJECT, _CORRELATION = 5, 7
ROW_BYTES = 40  # of a fact, besides its content

# Kinds whose rows may name a cause, and where.
_CAUSED, _CAUSATION = frozenset({"accepted", "requested", "unroutable", "delivered"}), 8


@dataclass(slots=True, eq=False)
class _Signal:
    """What a batch says of one signal."""

    type: str
    heard: float
    failed: bool = False
    causation: str | None = None
    place: int = 0
    type_id: int = 0


_Entry = tuple[int, int, int, Row]  # origin, recorder, sequence
_SignalEntry = tuple[_Signal, int, int, int, Row]


@dataclass(slots=True)
class _Gathered:
    """What several batches say."""

    entries: list[_SignalEntry] = field(default_factory=list[_SignalEntry])
    sessions: list[_Entry] = field(default_factory=list[_Entry])
    signals: dict[str, _Signal] = field(default_factory=dict[str, _Signal])


def append(connection: sqlite3.Connection, batches: Sequence[Batch]) -> int:
    """Store the facts of batches; return how many of them were new.

    What belongs to a time that has been pruned already is left out.
    """
    gathered = _gather(connection, batches)
    _append_sessions(connection, gathered.sessions)
    _resolve(connection, gathered.signals)
    return _append_facts(connection, gathered)


def _gather(connection: sqlite3.Connection, batches: Sequence[Batch]) -> _Gathered:
    found = _Gathered()
    signals, entries = found.signals, found.entries
    recorders = names(connection, {batch.origin.recorder for batch in batches})
    for batch in map(writable, batches):
        origin, recorder = _origin(connection, batch), recorders[batch.origin.recorder]
        for sequence, row in enumerate(batch.rows, batch.first):
            if row[0] in SESSION_STEPS:
                found.sessions.append((origin, recorder, sequence, row))
                continue
            signal = signals.get(id := cast("str", row[2]))  # noqa: A001
            if signal is None:
                signal = signals[id] = _Signal(cast("str", row[3]), first_heard(row))
            _note(signal, row)
            entries.append((signal, origin, recorder, sequence, row))
    return found


def _note(signal: _Signal, row: Row) -> None:
    if has_failed(row):
        signal.failed = True
    if signal.causation is None and len(row) > _CAUSATION and row[0] in _CAUSED:
        signal.causation = cast("str | None", row[_CAUSATION])


def _origin(connection: sqlite3.Connection, batch: Batch) -> int:
    origin = batch.origin
    key = (origin.recorder, origin.session, origin.name, origin.host, origin.pid, origin.level, origin.share)
    row = connection.execute(
        "INSERT INTO ledger_origins (recorder, session, name, host, pid, level, share, dropped)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET dropped = max(dropped, excluded.dropped) RETURNING id",
        (*key, batch.dropped),
    ).fetchone()
    return int(row[0])


def names(connection: sqlite3.Connection, wanted: Iterable[str]) -> dict[str, int]:
    """Return the numbers of names; new ones get one."""
    listed = orjson.dumps(list(wanted)).decode()
    query = "SELECT name, id FROM ledger_names WHERE name IN (SELECT value FROM json_each(?))"
    found: dict[str, int] = dict(connection.execute(query, (listed,)).fetchall())
    for name in orjson.loads(listed):
        if name not in found:
            inserted = connection.execute("INSERT INTO ledger_names (name) VALUES (?) RETURNING id", (name,))
            found[name] = int(inserted.fetchone()[0])
    return found


def _append_sessions(connection: sqlite3.Connection, entries: list[_Entry]) -> None:
    insert(
        connection,
        "INSERT OR IGNORE INTO ledger_sessions (session, recorder, sequence, origin, at, fact)",
        [
            (row[2], recorder, sequence, origin, float(cast("float", row[1])), packed(row))
            for origin, recorder, sequence, row in entries
        ],
    )


# Signals


def _resolve(connection: sqlite3.Connection, signals: dict[str, _Signal]) -> None:
    """Find or make the rows of signals; those of a time that was pruned keep the place 0."""
    if not signals:
        return
    types = names(connection, {signal.type for signal in signals.values()})
    known = connection.execute(
        "SELECT id, place, type FROM ledger_signals WHERE id IN (SELECT value FROM json_each(?))",
        (orjson.dumps(list(signals)).decode(),),
    ).fetchall()
    for signal_id, place, signal_type in known:
        signals[signal_id].place, signals[signal_id].type_id = place, signal_type
    _update(connection, [signals[signal_id] for signal_id, _, _ in known])
    new = {signal_id: signal for signal_id, signal in signals.items() if not signal.place}
    for signal in new.values():
        signal.type_id = types[signal.type]
    _insert(connection, new)


def _update(connection: sqlite3.Connection, known: list[_Signal]) -> None:
    failed = [signal.place for signal in known if signal.failed]
    if failed:
        connection.execute(
            "UPDATE ledger_signals SET failed = 1 WHERE failed = 0 AND place IN (SELECT value FROM json_each(?))",
            (orjson.dumps(failed).decode(),),
        )
    connection.executemany(
        "UPDATE ledger_signals SET causation = ? WHERE place = ? AND causation IS NULL",
        [(signal.causation, signal.place) for signal in known if signal.causation],
    )


def _insert(connection: sqlite3.Connection, new: dict[str, _Signal]) -> None:
    if not new:
        return
    floor = int(connection.execute("SELECT floor FROM ledger_meta").fetchone()[0])
    _give_places(connection, new, floor)
    insert(
        connection,
        "INSERT INTO ledger_signals (place, id, type, failed, causation)",
        [
            (signal.place, signal_id, signal.type_id, int(signal.failed), signal.causation)
            for signal_id, signal in sorted(new.items(), key=lambda item: item[1].place)
            if signal.place
        ],
    )


def _give_places(connection: sqlite3.Connection, new: dict[str, _Signal], floor: int) -> None:
    """Give every new signal a place that nothing has; collisions step on, each by a number of its own."""
    taken: set[int] = set()
    waiting = {signal_id: max(place_of(signal.heard, signal_id), 1) for signal_id, signal in new.items()}
    waiting = {signal_id: place for signal_id, place in waiting.items() if place >= floor}
    while waiting:
        query = "SELECT place FROM ledger_signals WHERE place IN (SELECT value FROM json_each(?))"
        taken.update(row[0] for row in connection.execute(query, (orjson.dumps(list(waiting.values())).decode(),)))
        colliding: dict[str, int] = {}
        for signal_id, place in waiting.items():
            if place in taken:
                colliding[signal_id] = place + (zlib.adler32(signal_id.encode("utf-8", "replace")) & 4_095) + 1
            else:
                new[signal_id].place = place
                taken.add(place)
        waiting = colliding


# Facts


def _append_facts(connection: sqlite3.Connection, gathered: _Gathered) -> int:
    facts: list[tuple[int, int, int, int, bytes]] = []
    deliveries: dict[tuple[str, int, int], int] = {}
    found: set[tuple[int, int, int]] = set()
    for signal, origin, recorder, sequence, row in gathered.entries:
        place = signal.place
        if not place:
            continue
        facts.append((place, recorder, sequence, origin, packed(row)))
        for subscription, reached in progress(row):
            key = subscription, signal.type_id, place
            if reached > deliveries.get(key, -1):
                deliveries[key] = reached
        if (data := _DATA.get(cast("str", row[0]))) is not None:
            segment = place >> SEGMENT_BITS
            for each in hashes(_at(row, data), _at(row, _SUBJECT), _at(row, _CORRELATION)):
                found.add((segment, each, place))
    _append_deliveries(connection, deliveries)
    insert(connection, "INSERT OR IGNORE INTO ledger_fields (segment, hash, place)", sorted(found))
    return _insert_facts(connection, facts)


def _at(row: Row, position: int) -> str | None:
    return cast("str | None", row[position]) if len(row) > position else None


def _append_deliveries(connection: sqlite3.Connection, deliveries: dict[tuple[str, int, int], int]) -> None:
    numbers = {**names(connection, {subscription for subscription, _, _ in deliveries} - {""}), "": NOWHERE}
    insert(
        connection,
        "INSERT INTO ledger_deliveries (subscription, type, place, progress)",
        sorted(
            (numbers[subscription], signal_type, place, reached)
            for (subscription, signal_type, place), reached in deliveries.items()
        ),
        "ON CONFLICT DO UPDATE SET progress = excluded.progress WHERE progress < excluded.progress",
    )


def _insert_facts(connection: sqlite3.Connection, facts: list[tuple[int, int, int, int, bytes]]) -> int:
    if not facts:
        return 0
    facts.sort()
    into = "INSERT OR IGNORE INTO ledger_facts (place, recorder, sequence, origin, fact)"
    inserted = insert(connection, into, facts)
    size = sum([len(fact) for *_, fact in facts]) + ROW_BYTES * len(facts)
    connection.execute(
        "UPDATE ledger_meta SET facts = facts + ?, bytes = bytes + ?", (inserted, size * inserted // len(facts))
    )
    return inserted
