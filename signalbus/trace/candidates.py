"""Places of signals that may fit a query, newest first, out of the index that narrows it down most.

A superset of what fits, types and times excepted, which are exact; never the same place twice.
"""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import orjson

from ..patterns import parse
from .append import NOWHERE, SEGMENT_BITS
from .fields import ATTRIBUTES, WIDE, hash_of
from .listing import Query
from .records import RANKS, Rank, round_place

_OPEN_INDEX = frozenset(Rank) - {Rank.ACKED, Rank.REPLIED}
_OF_REQUESTS = frozenset({Rank.ASKED, Rank.REPLIED, Rank.FAILED})
_INDEXED = ("data.", *(name for name in ATTRIBUTES if name != "source"))  # few sources, so each has too many signals


@dataclass(frozen=True, slots=True)
class Span:
    """Places from ``first`` to ``last``."""

    first: int
    last: int

    @classmethod
    def of(cls, query: Query) -> Span:
        """Return the places of a query's times."""
        first = 0 if query.since is None else round_place(query.since)
        last = 2**63 - 1 if query.until is None else round_place(query.until)
        span = cls(first, last)
        return span if query.before is None else span.until_before(query.before)

    def until_before(self, place: int) -> Span:
        """Return the part before a place."""
        return replace(self, last=min(self.last, place - 1))


def places(connection: sqlite3.Connection, query: Query, span: Span | None = None) -> Iterator[int]:
    """Yield places, newest first."""
    span = span or Span.of(query)
    types = None if not query.patterns else _types(connection, query.patterns)
    if types == []:
        return iter(())
    return _distinct(_places(connection, query, types, span))


def _distinct(ordered: Iterator[int]) -> Iterator[int]:
    return (place for place, _ in groupby(ordered))


def _places(connection: sqlite3.Connection, query: Query, types: list[int] | None, span: Span) -> Iterator[int]:
    indexed = [(path, text) for path, text in query.where if path.startswith(_INDEXED)]
    subscription = None if query.subscription is None else _name(connection, query.subscription)
    if indexed:
        return _of_types(connection, _by_field(connection, *indexed[0], span), types)
    ranks = frozenset[Rank]().union(*(RANKS[state] for state in query.states))
    if ranks and ranks <= _OPEN_INDEX:
        return _open(connection, ranks, subscription, types, span)
    if query.failed:
        return _failed(connection, types, span)
    if ranks and ranks <= _OF_REQUESTS:
        subscription = NOWHERE
    if subscription is not None:
        return _deliveries(connection, ranks, subscription, types, span)
    return _signals(connection, types, span)


def _types(connection: sqlite3.Connection, patterns: Iterable[str]) -> list[int]:
    """Return the types that one of the patterns matches."""
    parsed = [parse(pattern) for pattern in patterns]
    rows = connection.execute(
        "WITH RECURSIVE types (id) AS (SELECT min(type) FROM ledger_signals UNION ALL"
        " SELECT (SELECT min(type) FROM ledger_signals WHERE type > types.id) FROM types WHERE id IS NOT NULL)"
        " SELECT n.id, n.name FROM types JOIN ledger_names n ON n.id = types.id"
    )
    return [number for number, name in rows if any(pattern.matches(name) for pattern in parsed)]


def _name(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT id FROM ledger_names WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else -1


def _merged(cursors: Iterable[Iterator[tuple[int]]]) -> Iterator[int]:
    return (place for (place,) in heapq.merge(*cursors, reverse=True))


# One function for each index


def _signals(connection: sqlite3.Connection, types: list[int] | None, span: Span) -> Iterator[int]:
    if types is None:
        query = "SELECT place FROM ledger_signals WHERE place BETWEEN ? AND ? ORDER BY place DESC"
        return (place for (place,) in connection.execute(query, (span.first, span.last)))
    query = (
        "SELECT place FROM ledger_signals INDEXED BY ledger_signals_type"
        " WHERE type = ? AND place BETWEEN ? AND ? ORDER BY place DESC"
    )
    return _merged(connection.execute(query, (number, span.first, span.last)) for number in types)


def _failed(connection: sqlite3.Connection, types: list[int] | None, span: Span) -> Iterator[int]:
    if types is None:
        query = (
            "SELECT place FROM ledger_signals INDEXED BY ledger_signals_failed"
            " WHERE failed = 1 AND place BETWEEN ? AND ? ORDER BY place DESC"
        )
        return (place for (place,) in connection.execute(query, (span.first, span.last)))
    query = (
        "SELECT place FROM ledger_signals INDEXED BY ledger_signals_failed_type"
        " WHERE failed = 1 AND type = ? AND place BETWEEN ? AND ? ORDER BY place DESC"
    )
    return _merged(connection.execute(query, (number, span.first, span.last)) for number in types)


def _open(
    connection: sqlite3.Connection,
    ranks: frozenset[Rank],
    subscription: int | None,
    types: list[int] | None,
    span: Span,
) -> Iterator[int]:
    """What is neither acked nor replied."""
    query = (
        "SELECT place FROM ledger_deliveries INDEXED BY ledger_deliveries_open"
        " WHERE progress & 15 = ?1 AND progress & 15 NOT IN (3, 6) AND place BETWEEN ?2 AND ?3"
        " AND (?4 IS NULL OR subscription = ?4) AND (?5 IS NULL OR type IN (SELECT value FROM json_each(?5)))"
        " ORDER BY place DESC"
    )
    listed = None if types is None else orjson.dumps(types).decode()
    return _merged(
        connection.execute(query, (int(rank), span.first, span.last, subscription, listed)) for rank in sorted(ranks)
    )


def _deliveries(
    connection: sqlite3.Connection,
    ranks: frozenset[Rank],
    subscription: int,
    types: list[int] | None,
    span: Span,
) -> Iterator[int]:
    query = (
        "SELECT place FROM ledger_deliveries WHERE subscription = ?1 AND type = ?2 AND place BETWEEN ?3 AND ?4"
        " AND (?5 IS NULL OR progress & 15 IN (SELECT value FROM json_each(?5))) ORDER BY place DESC"
    )
    listed = orjson.dumps(sorted(map(int, ranks))).decode() if ranks else None
    return _merged(
        connection.execute(query, (number, signal_type, span.first, span.last, listed))
        for number, signal_type in pairs(connection, subscription)
        if types is None or signal_type in types
    )


def pairs(connection: sqlite3.Connection, subscription: int | None = None) -> list[tuple[int, int]]:
    """Return the subscriptions with the types that they got, by jumping through the index from one to the next."""
    found: list[tuple[int, int]] = []
    after = (-1 if subscription is None else subscription, -1)
    query = (
        "SELECT subscription, type FROM ledger_deliveries WHERE (subscription, type) > (?, ?)"
        " ORDER BY subscription, type LIMIT 1"
    )
    while row := connection.execute(query, after).fetchone():
        after = (row[0], row[1])
        if subscription is not None and row[0] != subscription:
            break
        found.append(after)
    return found


def _by_field(connection: sqlite3.Connection, path: str, text: str, span: Span) -> Iterator[int]:
    """What has a field, or more fields than the index holds; one segment of time after the other."""
    wanted = (hash_of(path, text), WIDE)
    query = (
        "SELECT place FROM ledger_fields WHERE segment = ?1 AND hash IN (?2, ?3) AND place BETWEEN ?4 AND ?5"
        " ORDER BY place DESC"
    )
    for segment in _segments(connection, span):
        for (place,) in connection.execute(query, (segment, *wanted, span.first, span.last)).fetchall():
            yield place


def _segments(connection: sqlite3.Connection, span: Span) -> Iterator[int]:
    segment = (span.last >> SEGMENT_BITS) + 1
    query = "SELECT max(segment) FROM ledger_fields WHERE segment < ? AND segment >= ?"
    while (row := connection.execute(query, (segment, span.first >> SEGMENT_BITS)).fetchone())[0] is not None:
        segment = int(row[0])
        yield segment


def _of_types(connection: sqlite3.Connection, found: Iterator[int], types: list[int] | None) -> Iterator[int]:
    if types is None:
        yield from found
        return
    wanted = set(types)
    query = "SELECT type FROM ledger_signals WHERE place = ?"
    for place in found:
        row = connection.execute(query, (place,)).fetchone()
        if row is not None and row[0] in wanted:
            yield place
