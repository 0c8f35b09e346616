"""The tables of dead letters, beside those of the embedded broker or of a router's ledger. Statements only.

``dead_letters`` has the contents, one row a death, as whoever buried them wrote it; ``letters`` what is known of each
dead letter. A death is recorded in ``letters`` when somebody asks: burying costs no more than before, and processes of
an earlier version bury as they always did.
"""

from __future__ import annotations

import sqlite3

from ..errors import ConfigError

VERSION = 1

CONTENTS = """
CREATE TABLE dead_letters (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL,
    signal INTEGER NOT NULL, fanout INTEGER, checksum INTEGER, head BLOB, body BLOB,
    reason TEXT NOT NULL, detail TEXT NOT NULL,
    attempt INTEGER NOT NULL, crashes INTEGER NOT NULL,
    at REAL NOT NULL, history BLOB
)"""
_TABLES = """
CREATE TABLE letter_meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    version INTEGER NOT NULL,
    recorded INTEGER NOT NULL    -- deaths up to this position are recorded in `letters`
);
CREATE TABLE letters (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    subscription TEXT NOT NULL, signal TEXT NOT NULL, type TEXT NOT NULL,
    reason TEXT NOT NULL, detail TEXT NOT NULL, error TEXT NOT NULL, place TEXT NOT NULL, cluster TEXT NOT NULL,
    attempt INTEGER NOT NULL, crashes INTEGER NOT NULL, deaths INTEGER NOT NULL,
    died REAL NOT NULL,
    changed REAL NOT NULL, actor TEXT NOT NULL DEFAULT '', note TEXT NOT NULL DEFAULT '',
    content INTEGER NOT NULL,        -- position in dead_letters
    replay TEXT NOT NULL DEFAULT '', -- that has it, while it is waiting or replaying
    -- Embedded broker: where its copy was put. Else `queue` says how far sending is, see `transitions.IN_HAND`.
    queue INTEGER, copy INTEGER
);
CREATE INDEX letters_died ON letters (died, number);
-- Has all that groups are counted from.
CREATE INDEX letters_cluster ON letters (cluster, state, type, died);
CREATE INDEX letters_signal ON letters (signal);
CREATE INDEX letters_content ON letters (content);
CREATE INDEX letters_replay ON letters (replay, state) WHERE replay <> '';
CREATE INDEX letters_copy ON letters (copy) WHERE copy IS NOT NULL;
CREATE INDEX letters_acked ON letters (changed) WHERE state = 'acked';
CREATE TABLE letter_deaths (
    letter INTEGER NOT NULL, at REAL NOT NULL,  -- of what came without a number of its copy, and may come again
    PRIMARY KEY (letter, at)
) WITHOUT ROWID;
CREATE TABLE letter_replays (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    actor TEXT NOT NULL, started REAL NOT NULL, rate REAL NOT NULL,
    sender INTEGER,                  -- embedded broker: the session that sends
    total INTEGER NOT NULL, taken INTEGER NOT NULL,
    acked INTEGER NOT NULL DEFAULT 0, died_again INTEGER NOT NULL DEFAULT 0,
    returned INTEGER NOT NULL DEFAULT 0, cancelled INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE letter_audit (
    number INTEGER PRIMARY KEY,
    at REAL NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
    letter TEXT NOT NULL, replay TEXT NOT NULL, count INTEGER NOT NULL, note TEXT NOT NULL,
    listed INTEGER NOT NULL          -- 0: one of many, for which there is one entry
);
CREATE INDEX letter_audit_letter ON letter_audit (letter) WHERE letter <> '';
CREATE INDEX letter_audit_listed ON letter_audit (number) WHERE listed = 1;
"""


def statements() -> list[str]:
    """Return what makes the tables beside those of contents, in a file that has none of them."""
    made = [statement.strip() for statement in _TABLES.split(";\n") if statement.strip()]
    return [*made, f"INSERT INTO letter_meta VALUES (1, {VERSION}, 0)"]  # noqa: S608 - a number of ours


def prepare(connection: sqlite3.Connection) -> None:
    """Make sure that all tables are there, in a transaction of the caller. Raises `ConfigError` if they are newer."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'letter_meta'").fetchone() is None:
        for statement in (CONTENTS, *statements()):
            connection.execute(statement)
        return
    found = connection.execute("SELECT version FROM letter_meta").fetchone()[0]
    if found != VERSION:
        raise ConfigError(
            f"the dead letters in this file have schema version {found}, this signalbus knows {VERSION}; "
            "use the version of signalbus that wrote it, or name another file"
        )
