"""The result file of a subscriber: every run of its handler, and each signal's effect exactly once.

A run is recorded in the same transaction as its effect, and the effect only if the signal's id is new: so a
redelivery is seen, counted and harmless. Runs that end at about the same time share a transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SCHEMA = """
CREATE TABLE IF NOT EXISTS run (signal TEXT, attempt INTEGER, crashes INTEGER, failed INTEGER);
CREATE TABLE IF NOT EXISTS done (signal TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS effect (
    subject TEXT, kind TEXT, flights INTEGER, known INTEGER, minutes INTEGER, PRIMARY KEY (subject, kind)
) WITHOUT ROWID;
"""

Totals = dict[tuple[str, str], tuple[int, int, int]]
"""Flights, flights with a known delay, and minutes of delay, by subject (an airline, an airport) and kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a handler. Without an effect (subject, kind, delay) it failed."""

    signal: str
    attempt: int
    crashes: int
    effect: tuple[str, str, int | None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a result file holds. ``retried``: runs after a failure; ``redelivered``: after a death of a subscriber;
    ``duplicates``: runs whose effect was recorded before."""

    runs: int = 0
    failed: int = 0
    retried: int = 0
    redelivered: int = 0
    duplicates: int = 0


class ResultFile:
    """Records runs. Used by one subscriber process at a time; survives its death by ``kill -9``."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # NORMAL: a killed process loses nothing, only a power cut would. The demo cuts no power.
        self._database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {SCHEMA}")
        self.done: int = self._database.execute("SELECT count(*) FROM done").fetchone()[0]
        self._waiting: list[Run] = []
        self._next: asyncio.Future[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    async def record(self, run: Run) -> None:
        """Record a run with its effect; returns when it is committed."""
        self._waiting.append(run)
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        committed = self._next
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        await asyncio.shield(committed)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            committed, self._next = self._next, None
            assert committed is not None
            try:
                self.done += await asyncio.to_thread(self._write, batch)
            except sqlite3.Error as error:
                committed.set_exception(error)
            else:
                committed.set_result(None)

    def _write(self, batch: list[Run]) -> int:
        """Commit a batch and return how many of its signals are new."""
        database, new = self._database, 0
        database.execute("BEGIN IMMEDIATE")
        try:
            for run in batch:
                database.execute(
                    "INSERT INTO run VALUES (?, ?, ?, ?)", (run.signal, run.attempt, run.crashes, run.effect is None)
                )
                if run.effect is None:
                    continue
                if database.execute("INSERT OR IGNORE INTO done VALUES (?)", (run.signal,)).rowcount == 1:
                    new += 1
                    subject, kind, delay = run.effect
                    database.execute(
                        "INSERT INTO effect VALUES (?, ?, 1, ?, ?) ON CONFLICT DO UPDATE SET flights = flights + 1,"
                        " known = known + excluded.known, minutes = minutes + excluded.minutes",
                        (subject, kind, delay is not None, delay or 0),
                    )
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise
        return new


def read_done(path: Path) -> set[str]:
    """Return the ids whose effects are recorded."""
    with _reading(path) as database:
        return {row[0] for row in database.execute("SELECT signal FROM done")}


def read_counts(path: Path) -> Counts:
    """Return what was counted."""
    with _reading(path) as database:
        runs, failed, retried, redelivered, done = database.execute(
            "SELECT count(*), total(failed), total(attempt > 1), total(crashes > 0), (SELECT count(*) FROM done)"
            " FROM run"
        ).fetchone()
    return Counts(
        runs=runs,
        failed=int(failed),
        retried=int(retried),
        redelivered=int(redelivered),
        duplicates=runs - int(failed) - done,
    )


def read_retried(path: Path) -> str | None:
    """Return the id of a signal that failed, and was handled later; the one with the most attempts."""
    return _first(path, "SELECT signal FROM run WHERE attempt > 1 AND NOT failed ORDER BY attempt DESC, signal LIMIT 1")


def read_taken_over(path: Path) -> str | None:
    """Return the id of a signal that came again after the death of who had it."""
    return _first(path, "SELECT signal FROM run WHERE crashes > 0 AND NOT failed ORDER BY signal LIMIT 1")


def _first(path: Path, question: str) -> str | None:
    with _reading(path) as database:
        row = database.execute(question).fetchone()
    return None if row is None else str(row[0])


def read_totals(path: Path) -> Totals:
    """Return the effects."""
    with _reading(path) as database:
        rows = database.execute("SELECT subject, kind, flights, known, minutes FROM effect")
        return {(subject, kind): (flights, known, minutes) for subject, kind, flights, known, minutes in rows}


@contextmanager
def _reading(path: Path) -> Generator[sqlite3.Connection]:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.executescript(SCHEMA)  # of a subscriber that died before its first run
        yield database
    finally:
        database.close()
