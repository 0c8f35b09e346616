"""Reading the store: facts of a trace, lists of signals, ids by prefix. Functions over a connection.

A list is made in three steps: an index yields places, newest first; one statement drops what does not fit its type or
did not fail; the facts of the rest are read, and `tree.outline` has the last word, so that a list and a trace agree.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import cast

import orjson

from ..ledger import Fact, Origin
from .candidates import Span, places
from .fields import ATTRIBUTES, fields_of
from .listing import CANDIDATES, Candidate, Listed, Page, Query, StoreStats
from .model import SignalTrace, State
from .records import time_of, unpacked
from .tree import MAX_DEPTH, MAX_SIGNALS, outline

_CHUNK = 100
_MAX_READ = 1_000  # signals whose facts are read for one page: about 100 ms
_MAX_SEEN = 50_000  # places that are looked at for one page

_FACTS = """
SELECT s.place, s.id, n.name, f.sequence, f.fact,
       o.recorder, o.session, o.name, o.host, o.pid, o.level, o.share
FROM json_each(?) wanted
JOIN ledger_signals s ON s.place = wanted.value
JOIN ledger_names n ON n.id = s.type
JOIN ledger_facts f ON f.place = s.place
JOIN ledger_origins o ON o.id = f.origin
ORDER BY wanted.id
"""
_SESSIONS = """
SELECT f.sequence, f.fact, o.recorder, o.session, o.name, o.host, o.pid, o.level, o.share
FROM ledger_sessions f JOIN ledger_origins o ON o.id = f.origin
WHERE f.session IN (SELECT value FROM json_each(?))
"""


def trace_facts(connection: sqlite3.Connection, signal: str) -> list[Fact]:
    """Return the facts of a signal, of what it caused, and of the sessions that had it; none if it is not known."""
    row = connection.execute("SELECT place FROM ledger_signals WHERE id = ?", (signal,)).fetchone()
    found = _caused(connection, signal, {row[0]} if row else set())
    facts = [fact for _, _, group in _read(connection, sorted(found)) for fact in group]
    return [*facts, *_sessions(connection, facts)]


def find(connection: sqlite3.Connection, prefix: str, limit: int = CANDIDATES) -> list[Candidate]:
    """Return signals whose ids have a prefix, newest first; an id as ``0192f9…7c2`` is understood, too."""
    start, _, end = prefix.strip().replace("...", "…").partition("…")
    rows = connection.execute(
        "SELECT s.id, n.name, s.place FROM ledger_signals s JOIN ledger_names n ON n.id = s.type"
        " WHERE s.id >= ?1 AND s.id < ?1 || char(0x10FFFF) AND substr(s.id, -length(?2)) = ?2"
        " ORDER BY s.id DESC LIMIT ?3"
        if end
        else "SELECT s.id, n.name, s.place FROM ledger_signals s JOIN ledger_names n ON n.id = s.type"
        " WHERE s.id >= ?1 AND s.id < ?1 || char(0x10FFFF) ORDER BY s.id DESC LIMIT ?3",
        (start, end, limit),
    ).fetchall()
    if any(signal == start for signal, _, _ in rows) and not end:
        rows = [row for row in rows if row[0] == start]  # the whole id, though another one goes on from it
    return [Candidate(id=signal, type=name, at=time_of(place)) for signal, name, place in rows]


def page(connection: sqlite3.Connection, query: Query) -> Page:
    """Return signals, newest first. Bounded: see `Page.complete`."""
    listed: list[Listed] = []
    read, last = 0, None
    seen = islice(places(connection, query), _MAX_SEEN)
    size = min(max(query.limit, 20), _CHUNK)
    while chunk := list(islice(seen, size)):
        fitting = _fitting(connection, chunk, query)
        for place, failed, signal in _outlines(connection, fitting):
            if _agrees(signal, query):
                listed.append(Listed(signal=signal, at=signal.at or time_of(place), failed=failed))
            if len(listed) == query.limit:
                return Page(signals=tuple(listed), next=place)
        read, last = read + len(fitting), chunk[-1]
        if read >= _MAX_READ:
            return Page(signals=tuple(listed), next=last, complete=False)
    more = last is not None and next(places(connection, query, Span.of(query).until_before(last)), None) is not None
    return Page(signals=tuple(listed), next=last if more else None, complete=not more)


def stats(connection: sqlite3.Connection) -> StoreStats:
    """Return how much is stored."""
    facts, size = connection.execute("SELECT facts, bytes FROM ledger_meta").fetchone()
    oldest = connection.execute("SELECT min(place) FROM ledger_signals").fetchone()[0]
    by_recorder = "SELECT max(dropped) AS dropped FROM ledger_origins GROUP BY recorder"
    dropped = connection.execute(f"SELECT coalesce(sum(dropped), 0) FROM ({by_recorder})").fetchone()[0]  # noqa: S608
    return StoreStats(facts=facts, bytes=size, dropped=dropped, oldest=None if oldest is None else time_of(oldest))


# Traces


def _caused(connection: sqlite3.Connection, root: str, found: set[int]) -> set[int]:
    """Return the places of a signal and of all that it caused, within the bounds of a trace and one beyond."""
    current = [root]
    for _ in range(MAX_DEPTH + 1):
        rows = connection.execute(
            "SELECT place, id FROM ledger_signals WHERE causation IN (SELECT value FROM json_each(?)) LIMIT ?",
            (orjson.dumps(current).decode(), MAX_SIGNALS + 1 - len(found)),
        ).fetchall()
        current = [signal for place, signal in rows if place not in found]
        found |= {place for place, _ in rows}
        if not current or len(found) > MAX_SIGNALS:
            break
    return found


def _read(connection: sqlite3.Connection, wanted: Sequence[int]) -> Iterator[tuple[int, str, list[Fact]]]:
    """Yield signals with their facts, in the order that they are wanted in."""
    rows = connection.execute(_FACTS, (orjson.dumps(list(wanted)).decode(),))
    for (place, signal), group in groupby(rows, key=lambda row: cast("tuple[int, str]", row[:2])):
        facts: list[Fact] = []
        for _, _, signal_type, sequence, fact, *origin in group:
            facts.append(unpacked(_origin(origin), sequence, fact, signal, signal_type))
        yield place, signal, facts


def _sessions(connection: sqlite3.Connection, facts: Iterable[Fact]) -> list[Fact]:
    sessions = orjson.dumps(sorted({fact.origin.session for fact in facts})).decode()
    return [
        unpacked(_origin(origin), sequence, fact, "", "")
        for sequence, fact, *origin in connection.execute(_SESSIONS, (sessions,))
    ]


def _origin(columns: Sequence[object]) -> Origin:
    recorder, session, name, host, pid, level, share = columns
    return Origin(
        recorder=cast("str", recorder),
        session=cast("str", session),
        name=cast("str", name),
        host=cast("str", host),
        pid=cast("int", pid),
        level=cast("str", level),
        share=cast("float", share),
    )


# Lists


def _fitting(connection: sqlite3.Connection, chunk: list[int], query: Query) -> list[tuple[int, bool]]:
    """Return those of a chunk that are still there and may fit, each with whether something of it failed."""
    rows = connection.execute(
        "SELECT s.place, s.failed FROM json_each(?1) wanted JOIN ledger_signals s ON s.place = wanted.value"
        " WHERE (?2 = 0 OR s.failed = 1) AND (?3 IS NULL OR EXISTS (SELECT 1 FROM ledger_deliveries d"
        " WHERE d.subscription = (SELECT id FROM ledger_names WHERE name = ?3) AND d.type = s.type"
        " AND d.place = s.place)) ORDER BY wanted.id",
        (orjson.dumps(chunk).decode(), query.failed, query.subscription),
    )
    return [(place, bool(failed)) for place, failed in rows]


def _outlines(
    connection: sqlite3.Connection, fitting: list[tuple[int, bool]]
) -> Iterator[tuple[int, bool, SignalTrace]]:
    read = list(_read(connection, [place for place, _ in fitting]))
    downs = _sessions(connection, (fact for _, _, facts in read for fact in facts))
    failed = dict(fitting)
    for place, signal, facts in read:
        yield place, failed[place], outline(signal, [*facts, *downs])


def _agrees(signal: SignalTrace, query: Query) -> bool:
    return _has_state(signal, query.subscription, query.states) and _has_fields(signal, query.where)


def _has_state(signal: SignalTrace, subscription: str | None, states: frozenset[State]) -> bool:
    if subscription is None:
        return not states or not states.isdisjoint(signal.states)
    at = (delivery.state for delivery in signal.deliveries if delivery.subscription == subscription)
    return any(not states or state in states for state in at)


def _has_fields(signal: SignalTrace, where: tuple[tuple[str, str], ...]) -> bool:
    if not where:
        return True
    found = set(fields_of(signal.data))
    found.update((name, value) for name in ATTRIBUTES if (value := getattr(signal, name)) is not None)
    return found.issuperset(where)
