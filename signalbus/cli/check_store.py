"""The doctor's look at the store of a router: whether it is whole, has room, and can be written."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import BrokerError, ConfigError, StorageError
from ..escapes import escape
from ..trace.store import SqliteStore
from .checks import LOW_SPACE, Finding, State
from .failures import Exit

WRITE_SECONDS = 5.0  # an active router holds the lock for a tenth of a second at a time
VERIFY_SECONDS = 30.0
_STEPS = 100_000  # of SQLite, between looks at the clock


def check_store(path: Path) -> Iterator[Finding]:
    """Check a store. Changes nothing; blocks."""
    if not path.exists():
        yield Finding(
            check="store",
            found=f"{path} does not exist",
            state=State.WARNING,
            advice="signalbus router --store PATH makes it",
            code=Exit.NOT_FOUND,
        )
        return
    try:
        store = SqliteStore(path, read_only=True)
    except (BrokerError, ConfigError) as error:
        yield Finding(check="store", found=escape(str(error)), state=State.BAD, advice="see above")
        return
    try:
        yield _counted(store)
        yield _verified(path)
        yield _writable(path)
        yield _room(path)
    except BrokerError as error:
        yield Finding(check="store", found=escape(str(error)), state=State.BAD, advice="see above")
    finally:
        store.close()


def _counted(store: SqliteStore) -> Finding:
    stats = store.stats()
    found = f"{store.path} holds {stats.facts:,} facts in {stats.bytes >> 20:,} MiB"
    if not stats.dropped:
        return Finding(check="store", found=found)
    return Finding(
        check="store",
        found=f"{found}; {stats.dropped:,} more were dropped before they came here",
        state=State.WARNING,
        advice="a bus had no room for them: is a router always there? record less: docs/traces.md",
    )


def _verified(path: Path) -> Finding:
    """Check the structure of the file, for a while at most."""
    until = time.monotonic() + VERIFY_SECONDS
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    connection.set_progress_handler(lambda: int(time.monotonic() > until), _STEPS)
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorname", "") != "SQLITE_INTERRUPT":
            raise StorageError(f"{path} cannot be checked: {error}") from error
        return Finding(
            check="structure", found=f"not checked to its end within {VERIFY_SECONDS:.0f} s; as far, it is well"
        )
    except sqlite3.DatabaseError as error:
        found = [str(error)]
    finally:
        connection.close()
    if found == ["ok"]:
        return Finding(check="structure", found="the tables of the store are whole")
    return Finding(
        check="structure",
        found=f"the store is damaged: {'; '.join(map(escape, found))}",
        state=State.BAD,
        advice=f"move {path} away with its -wal and -shm: a router makes a new one; 'sqlite3 OLD .recover' saves facts",
    )


def _writable(path: Path) -> Finding:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=WRITE_SECONDS, isolation_level=None
    )
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return Finding(
            check="lock",
            found=f"the store cannot be written within {WRITE_SECONDS:.0f} s: {error}",
            state=State.WARNING,
            advice=f"find who holds it with 'fuser {path}'; facts wait at RabbitMQ meanwhile",
        )
    finally:
        connection.close()
    return Finding(check="lock", found="the store can be written")


def _room(path: Path) -> Finding:
    free = shutil.disk_usage(path.parent).free
    low = free < LOW_SPACE
    return Finding(
        check="store room",
        found=f"{free / (1 << 30):.1f} GiB free where the store is",
        state=State.WARNING if low else State.OK,
        advice="make room on the disk, or keep less: --keep-mib" if low else "",
    )
