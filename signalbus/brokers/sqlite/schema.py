"""Opening a file so that nothing but our own database is ever touched, and bringing it to our version."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from ...config import SqliteUrl
from ...errors import ConfigError, StorageError
from .failures import is_code, typed
from .files import Files
from .tables import MIGRATIONS, VERSION, statements

APPLICATION_ID = 0x53674275  # "SgBu"; what `file` and other programs see in the header
OLDEST_SQLITE = (3, 38, 0)  # the first with the JSON functions built in
_FIRST_ROW = "INSERT INTO meta (only, topology, boot) VALUES (1, 1, '')"


def connect(url: SqliteUrl, files: Files, *, create: bool) -> sqlite3.Connection:
    """Open the database and make it ready; the caller holds the write lock.

    Raises `ConfigError` for a file that is not ours or newer than this program, `StorageError` for one that cannot
    be used, `BrokerUnavailable` for one that others hold. A file that is refused is left as it was.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        wanted = ".".join(map(str, OLDEST_SQLITE))
        raise ConfigError(f"SQLite {sqlite3.sqlite_version} is too old; signalbus needs {wanted} or newer")
    if create:
        files.create()
    try:
        connection = sqlite3.connect(
            files.uri,
            uri=True,
            timeout=url.busy_timeout,
            isolation_level=None,  # transactions are begun by hand: BEGIN IMMEDIATE, always
            check_same_thread=False,  # opened and used by the writer thread only; a forked child may have to leak it
            cached_statements=256,
        )
    except sqlite3.Error as error:
        raise typed(error, f"cannot open {files.path}") from error
    try:
        _prepare(connection, url, files)
    except sqlite3.Error as error:
        connection.close()
        if is_code(error, sqlite3.SQLITE_NOTADB):
            raise ConfigError(
                f"{files.path} is not an SQLite database, or its first page is damaged; "
                "name another file, or move this one away or restore it"
            ) from error
        raise typed(error, f"cannot use {files.path}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def verify(connection: sqlite3.Connection, files: Files) -> None:
    """Check the structure of the database, after an error made it doubtful. Raises `StorageError`."""
    found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
    if found != ["ok"]:
        raise StorageError(
            f"{files.path} is damaged ({'; '.join(found)}); stop its users, keep a copy, and recover it with "
            "'sqlite3 <file> .recover'"
        )


def _prepare(connection: sqlite3.Connection, url: SqliteUrl, files: Files) -> None:
    connection.text_factory = _text
    application, version, tables = connection.execute(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master)"
        " FROM pragma_application_id(), pragma_user_version()"
    ).fetchone()
    if application != APPLICATION_ID and (tables or application):
        raise ConfigError(f"{files.path} is the database of another program; name another file")
    if application == APPLICATION_ID and version > VERSION:
        raise ConfigError(
            f"{files.path} has schema version {version}, written by a newer signalbus; this one knows {VERSION}. "
            "Update signalbus here, or name another file"
        )
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StorageError(f"{files.path} cannot use write-ahead logging (journal mode {mode}); check its file system")
    connection.execute(f"PRAGMA synchronous = {'FULL' if url.durability == 'full' else 'NORMAL'}")
    # Checkpoints run under the write lock only: SQLite before 3.51.3 can damage a file when one overlaps a commit.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA mmap_size = 0")
    connection.execute("PRAGMA cache_size = -16384")
    connection.execute("PRAGMA temp_store = MEMORY")
    if not tables:
        _change(connection, VERSION, [*statements(), _FIRST_ROW, f"PRAGMA application_id = {APPLICATION_ID}"])
    else:
        for number in range(max(version, 1) + 1, VERSION + 1):
            _change(connection, number, MIGRATIONS[number])


def _change(connection: sqlite3.Connection, version: int, changes: Iterable[str]) -> None:
    """Change the tables and note the version, in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in (*changes, f"PRAGMA user_version = {version}"):
            connection.execute(statement)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _text(stored: bytes) -> str:
    # A flipped bit in text must not make a whole result unreadable.
    return stored.decode("utf-8", "replace")
