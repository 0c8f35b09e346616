"""Which dead letters a query means: conditions for the statements of `queries` and `transitions`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from ..errors import ConfigError
from ..patterns import parse
from .model import LetterQuery, LetterState


@dataclass(frozen=True, slots=True)
class Condition:
    """What stands behind WHERE, over the columns of ``letters``, and its values."""

    sql: str
    values: tuple[object, ...] = ()

    def __and__(self, other: Condition) -> Condition:
        return Condition(f"({self.sql}) AND ({other.sql})", (*self.values, *other.values))

    def within(self, statement: str) -> str:
        """Return a statement with this condition in the place of ``<condition>``."""
        return statement.replace("<condition>", self.sql)


def in_state(*states: LetterState) -> Condition:
    """Return the condition of being in one of these states."""
    return one_of("state", (state.value for state in states))


def of_replay(replay: str, state: LetterState) -> Condition:
    """Return the condition of being in the hands of a replay, and there in a state."""
    # Spelled out, as the index covers no letter without a replay.
    return Condition("replay = ? AND replay <> '' AND state = ?", (replay, state.value))


def one_of(column: str, values: Iterable[str | int]) -> Condition:
    """Return the condition that a column has one of these values."""
    return Condition(f"{column} IN (SELECT value FROM json_each(?))", (listed(values),))  # noqa: S608 - a column of ours


def fitting(connection: sqlite3.Connection, query: LetterQuery, *, any_state: bool = False) -> Condition:
    """Return the condition of what fits a query, whatever its ``after`` and ``limit``. Raises `ConfigError`."""
    found = Condition("1") if any_state else in_state(*query.states)
    if query.ids:
        found &= one_of("id", map(storable, query.ids))
    for column, wanted in (("cluster", query.group), ("subscription", query.subscription), ("signal", query.signal)):
        if wanted:
            found &= Condition(f"{column} = ?", (storable(wanted),))
    if query.patterns:
        found &= one_of("type", _types(connection, query.patterns))
    if query.error:
        error = storable(query.error)
        found &= Condition("error = ? OR substr(error, -length(?)) = ?", (error, f".{error}", f".{error}"))
    if query.since is not None:
        found &= Condition("died >= ?", (query.since,))
    if query.until is not None:
        found &= Condition("died <= ?", (query.until,))
    return found


def behind(cursor: str) -> Condition:
    """Return the condition of coming after a place in the list, newest first. Raises `ConfigError`."""
    died, _, number = cursor.partition("~")
    try:
        place = float(died), int(number)
    except ValueError as error:
        raise ConfigError(f"{cursor[:80]!a} is no place in the list; use `next` of the page before") from error
    return Condition("(died, number) < (?, ?)", place)


def cursor_at(died: float, number: int) -> str:
    """Return a place in the list."""
    return f"{died!r}~{number}"


def listed(values: Iterable[str | int]) -> str:
    """Return values as the JSON array that statements take."""
    return orjson.dumps(list(values)).decode()


def storable(text: str) -> str:
    """Replace lone surrogates, which cannot be stored."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _types(connection: sqlite3.Connection, patterns: Iterable[str]) -> list[str]:
    parsed = [parse(pattern) for pattern in patterns]
    types = [str(row[0]) for row in connection.execute("SELECT DISTINCT type FROM letters")]
    return [each for each in types if any(pattern.matches(each) for pattern in parsed)]
