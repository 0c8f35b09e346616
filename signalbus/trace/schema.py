"""The tables of the ledger, in a file of their own or beside those of the embedded broker.

A signal's ``place`` orders everything: it is when the signal was first heard of, in 1/1024 of a microsecond since 1970,
made unique. So each table is in the order of time, appending touches the end of it, and pruning the beginning.
"""

from __future__ import annotations

import sqlite3

from ..errors import ConfigError

VERSION = 1
APPLICATION_ID = 0x5367426C  # "SgBl": a file that holds nothing but a ledger

_TABLES = """
CREATE TABLE ledger_meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    version INTEGER NOT NULL,
    floor INTEGER NOT NULL,    -- what is before this place was pruned, and does not come back
    facts INTEGER NOT NULL,
    bytes INTEGER NOT NULL     -- of facts with their payloads, roughly
);
CREATE TABLE ledger_names (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE  -- of types and subscriptions
);
CREATE TABLE ledger_origins (
    id INTEGER PRIMARY KEY,
    recorder TEXT NOT NULL, session TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    level TEXT NOT NULL, share REAL NOT NULL,
    dropped INTEGER NOT NULL,
    UNIQUE (recorder, session, name, host, pid, level, share)
);
CREATE TABLE ledger_signals (
    place INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    type INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    causation TEXT
);
CREATE INDEX ledger_signals_type ON ledger_signals (type);
CREATE INDEX ledger_signals_causation ON ledger_signals (causation) WHERE causation IS NOT NULL;
CREATE INDEX ledger_signals_failed ON ledger_signals (place) WHERE failed = 1;
CREATE INDEX ledger_signals_failed_type ON ledger_signals (type) WHERE failed = 1;
CREATE TABLE ledger_facts (
    place INTEGER NOT NULL, recorder INTEGER NOT NULL, sequence INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    fact BLOB NOT NULL,  -- JSON array: kind, time, fields after signal and type
    PRIMARY KEY (place, recorder, sequence)
) WITHOUT ROWID;
CREATE TABLE ledger_deliveries (
    subscription INTEGER NOT NULL,  -- 0: requests, and signals that went nowhere
    type INTEGER NOT NULL, place INTEGER NOT NULL,
    progress INTEGER NOT NULL,      -- attempt * 16 + rank, see `records.Rank`
    PRIMARY KEY (subscription, type, place)
) WITHOUT ROWID;
CREATE INDEX ledger_deliveries_open ON ledger_deliveries (progress & 15, place, subscription, type)
    WHERE progress & 15 NOT IN (3, 6);
CREATE TABLE ledger_fields (
    segment INTEGER NOT NULL,  -- place >> 40, about 18 minutes: keeps insertions of random hashes close together
    hash INTEGER NOT NULL, place INTEGER NOT NULL,
    PRIMARY KEY (segment, hash, place)
) WITHOUT ROWID;
CREATE TABLE ledger_sessions (
    session TEXT NOT NULL, recorder INTEGER NOT NULL, sequence INTEGER NOT NULL,
    origin INTEGER NOT NULL, at REAL NOT NULL, fact BLOB NOT NULL,
    PRIMARY KEY (session, recorder, sequence)
) WITHOUT ROWID;
CREATE INDEX ledger_sessions_at ON ledger_sessions (at);
"""


def statements() -> list[str]:
    """Return what makes the tables, in a file that has none of them."""
    made = [statement.strip() for statement in _TABLES.split(";\n") if statement.strip()]
    return [*made, f"INSERT INTO ledger_meta VALUES (1, {VERSION}, 0, 0, 0)"]  # noqa: S608 - a number of ours


def prepare(connection: sqlite3.Connection) -> None:
    """Make sure that the tables are there, in a transaction of the caller.

    Raises `ConfigError` if they were made by a newer version; then nothing was changed.
    """
    found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'ledger_meta'").fetchone()
    if found is None:
        for statement in statements():
            connection.execute(statement)
        return
    check(connection)


def check(connection: sqlite3.Connection) -> None:
    """Raise `ConfigError` unless the tables can be read by this version."""
    try:
        row = connection.execute("SELECT version FROM ledger_meta").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        raise ConfigError("this file holds no ledger; name the file of a router or of an embedded broker") from error
    version = row[0] if row else None
    if version != VERSION:
        raise ConfigError(
            f"the ledger in this file has schema version {version}, this signalbus knows {VERSION}; "
            "use the version of signalbus that wrote it, or name another file"
        )
