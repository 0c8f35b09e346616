"""The tables of the database, and what each version of them added. Statements only."""

from __future__ import annotations

from ...deadletters import schema as deadletters
from ...trace import schema as ledger
from . import spool

VERSION = 3

# A delivery's state is the table it is in: claiming and settling then touch two small B-trees and no index.
# Bodies are stored once; `fanout` counts the deliveries left of a signal that went to several subscriptions.
TABLES = """
CREATE TABLE meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    topology INTEGER NOT NULL,  -- grows with each change of subscriptions, consumers or sessions
    boot TEXT NOT NULL          -- the boot that delayed.due counts from
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    token TEXT NOT NULL UNIQUE,  -- names its lock file
    socket TEXT NOT NULL,        -- where it listens for wake-ups
    session TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    version TEXT NOT NULL, started TEXT NOT NULL,
    address TEXT NOT NULL DEFAULT '',       -- where it takes requests
    incarnation INTEGER NOT NULL DEFAULT 1,
    watching INTEGER NOT NULL DEFAULT 0     -- whether it wants a hint when a session comes or ends
);
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    patterns TEXT NOT NULL,  -- JSON array
    owner INTEGER            -- the session it vanishes with; NULL: durable
);
CREATE TABLE consumers (
    subscription INTEGER NOT NULL, session INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (subscription, session)
) WITHOUT ROWID;
CREATE TABLE signals (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    fanout INTEGER NOT NULL,    -- deliveries it started with
    checksum INTEGER NOT NULL,  -- see records.seal
    head BLOB NOT NULL,         -- JSON array: id, type, content type, headers
    body BLOB NOT NULL
);
CREATE TABLE fanout (
    signal INTEGER PRIMARY KEY, pending INTEGER NOT NULL
);
CREATE TABLE ready (
    subscription INTEGER NOT NULL, signal INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 1, crashes INTEGER NOT NULL DEFAULT 0, history BLOB,
    PRIMARY KEY (subscription, signal)
) WITHOUT ROWID;
CREATE TABLE claimed (
    subscription INTEGER NOT NULL, signal INTEGER NOT NULL,
    attempt INTEGER NOT NULL, crashes INTEGER NOT NULL, history BLOB,
    session INTEGER NOT NULL, batch INTEGER NOT NULL,
    PRIMARY KEY (subscription, signal)
) WITHOUT ROWID;
CREATE TABLE delayed (
    subscription INTEGER NOT NULL, signal INTEGER NOT NULL,
    attempt INTEGER NOT NULL, crashes INTEGER NOT NULL, history BLOB,
    due REAL NOT NULL,       -- seconds on the boot clock
    due_wall REAL NOT NULL,  -- seconds since 1970, used after a reboot only
    delay REAL NOT NULL,
    PRIMARY KEY (subscription, signal)
) WITHOUT ROWID;
CREATE INDEX delayed_due ON delayed (subscription, due);
CREATE TABLE purges (
    subscription INTEGER PRIMARY KEY  -- deleted, its deliveries are still being removed
);
-- For people with the sqlite3 shell.
CREATE VIEW readable_signals AS
    SELECT seq, json_extract(CAST(head AS TEXT), '$[0]') AS id, json_extract(CAST(head AS TEXT), '$[1]') AS type,
           json_extract(CAST(head AS TEXT), '$[2]') AS content_type, length(body) AS bytes
    FROM signals;
"""

_DEPARTURES = """
CREATE TABLE departures (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session TEXT NOT NULL, name TEXT NOT NULL, reason TEXT NOT NULL,
    at REAL NOT NULL, unsettled INTEGER NOT NULL
)"""
_RESPONDERS = """
CREATE TABLE responders (
    type TEXT NOT NULL, session INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (type, session)
) WITHOUT ROWID"""
_DEAD_LETTERS = deadletters.statements()
_LEDGER = (*ledger.statements(), spool.TABLE)
# From the version before to each version. Only additions: processes that still run the version before go on.
MIGRATIONS = {
    2: (
        "ALTER TABLE sessions ADD COLUMN address TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sessions ADD COLUMN incarnation INTEGER NOT NULL DEFAULT 1",
        "ALTER TABLE sessions ADD COLUMN watching INTEGER NOT NULL DEFAULT 0",
        _DEPARTURES,
        _RESPONDERS,
        *_LEDGER,
    ),
    3: tuple(_DEAD_LETTERS),
}


def statements() -> list[str]:
    """Return what makes the newest version in an empty file."""
    made = (statement for statement in TABLES.split(";\n") if statement.strip())
    return [*made, deadletters.CONTENTS, _DEPARTURES, _RESPONDERS, *_LEDGER, *_DEAD_LETTERS]
