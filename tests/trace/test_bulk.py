"""Inserting many rows with few statements does what one statement a row does."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from signalbus.trace.bulk import ROWS, insert


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    made = sqlite3.connect(":memory:", isolation_level=None)
    made.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, number INTEGER)")
    yield made
    made.close()


@pytest.mark.parametrize("count", [0, 1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 3 * ROWS + 7])
def test_every_row_is_inserted_and_counted(count: int, connection: sqlite3.Connection) -> None:
    rows = [(number, number * 2) for number in range(count)]
    assert insert(connection, "INSERT INTO t (id, number)", rows) == count
    assert connection.execute("SELECT * FROM t ORDER BY id").fetchall() == rows


def test_only_rows_that_change_something_are_counted(connection: sqlite3.Connection) -> None:
    insert(connection, "INSERT INTO t (id, number)", [(number, 0) for number in range(0, 300, 2)])
    rows = [(number, 1) for number in range(300)]
    assert insert(connection, "INSERT OR IGNORE INTO t (id, number)", rows) == 150
    conflict = "ON CONFLICT DO UPDATE SET number = excluded.number WHERE number < excluded.number"
    assert insert(connection, "INSERT INTO t (id, number)", rows, conflict) == 150
    assert connection.execute("SELECT sum(number) FROM t").fetchone() == (300,)


def test_rows_that_meet_in_one_statement_are_taken_in_their_order(connection: sqlite3.Connection) -> None:
    conflict = "ON CONFLICT DO UPDATE SET number = excluded.number"
    insert(connection, "INSERT INTO t (id, number)", [(1, number) for number in range(2 * ROWS + 3)], conflict)
    assert connection.execute("SELECT number FROM t").fetchone() == (2 * ROWS + 2,)
