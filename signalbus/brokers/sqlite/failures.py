"""What an error of SQLite means for the operations it hit. Pure; the only place that reads SQLite's error codes."""

from __future__ import annotations

import sqlite3
from enum import Enum

from ...errors import BrokerError, BrokerUnavailable, StorageError


class Trouble(Enum):
    """What to do about an error."""

    BUSY = "busy"  # another program holds the database: try again later
    FULL = "full"  # no room: refuse publishes, keep trying to settle
    OPERATION = "operation"  # one operation is impossible, the others are not to blame
    BROKEN = "broken"  # the connection cannot be trusted: close it, open it anew, verify


_PRIMARY = 0xFF  # extended result codes keep the primary one in the low byte
_BY_CODE = {
    sqlite3.SQLITE_BUSY: Trouble.BUSY,
    sqlite3.SQLITE_LOCKED: Trouble.BUSY,
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_TOOBIG: Trouble.OPERATION,
    sqlite3.SQLITE_CONSTRAINT: Trouble.OPERATION,
}

_ADVICE = {
    sqlite3.SQLITE_BUSY: "another program holds the database; find it with 'fuser' and let it finish",
    sqlite3.SQLITE_LOCKED: "another program holds the database; find it with 'fuser' and let it finish",
    sqlite3.SQLITE_FULL: "the disk or quota is full; free some space",
    sqlite3.SQLITE_READONLY: "the file or its directory is not writable; check owner, mode and mount",
    sqlite3.SQLITE_CANTOPEN: "the file or its directory is missing or not accessible; check path, owner and mode",
    sqlite3.SQLITE_PERM: "the file or its directory is not accessible; check owner and mode",
    sqlite3.SQLITE_IOERR: "the disk reports errors; check the kernel log, then the file with 'PRAGMA integrity_check'",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; stop its users, keep a copy, and recover it with 'sqlite3 .recover'",
    sqlite3.SQLITE_NOTADB: "the file is not an SQLite database, or its first page is damaged; restore or move it",
}


def trouble_of(error: sqlite3.Error) -> Trouble:
    """Classify an error; what is not known leaves the connection untrusted."""
    return _BY_CODE.get(_code(error), Trouble.BROKEN)


def explain(error: sqlite3.Error) -> str:
    """Return SQLite's message and code with what to do about it."""
    name = getattr(error, "sqlite_errorname", "")
    advice = _ADVICE.get(_code(error))
    text = f"SQLite: {error}" + (f" ({name})" if name else "")
    return f"{text}; {advice}" if advice else text


def typed(error: sqlite3.Error, doing: str) -> BrokerError:
    """Return our error for one of SQLite's."""
    kind = BrokerUnavailable if trouble_of(error) is Trouble.BUSY else StorageError
    return kind(f"{doing}: {explain(error)}")


def is_code(error: sqlite3.Error, *codes: int) -> bool:
    """Tell whether the primary code of an error is one of ``codes``."""
    return _code(error) in codes


def _code(error: sqlite3.Error) -> int:
    # Errors that the sqlite3 module raises itself (text that is not UTF-8, for one) have no code.
    return int(getattr(error, "sqlite_errorcode", -1)) & _PRIMARY
