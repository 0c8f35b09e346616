"""Where facts are kept: the seam, and a store in an SQLite file of its own.

The embedded broker uses the functions beneath (`schema.prepare`, `append.append`, `prune.prune`, `queries`) over its
own connection, inside its transactions. Calls block: a service runs them in a thread.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import BrokerUnavailable, ConfigError, StorageError
from ..ledger import Batch, Fact
from . import queries, schema
from .append import append
from .listing import MIN_PREFIX, Candidate, Page, Query, Retention, StoreStats
from .prune import PIECE, prune

_HELD = ("SQLITE_BUSY", "SQLITE_LOCKED")

T = TypeVar("T")


class TraceStore(Protocol):
    """What the collector and the inspector ask of a store. May be called from several threads; writes take turns.

    Raises `StorageError` (or `BrokerUnavailable` where another program holds the store), never errors of a driver.
    """

    def append(self, batches: Sequence[Batch]) -> int:
        """Store facts durably, all or none; return how many were new. A batch that comes twice changes nothing."""
        ...

    def trace_facts(self, signal: str) -> list[Fact]:
        """Return the facts of a signal, of what it caused, and of the sessions that had it; none if not known."""
        ...

    def find(self, prefix: str) -> list[Candidate]:
        """Return up to 20 signals whose ids begin like this, at least six characters. Raises `ConfigError`."""
        ...

    def page(self, query: Query) -> Page:
        """Return signals, newest first. Raises `ConfigError` for a pattern that cannot be."""
        ...

    def stats(self) -> StoreStats:
        """Return how much is stored."""
        ...

    def prune(self, retention: Retention, piece: int = PIECE) -> bool:
        """Forget up to ``piece`` of the oldest signals; return whether to go on. Writers wait for some milliseconds."""
        ...

    def close(self) -> None:
        """Close it. Idempotent."""
        ...


class SqliteStore:
    """A `TraceStore` in an SQLite file: one writer, any number of readers, of which one is ours."""

    def __init__(
        self, path: Path, *, busy_timeout: float = 5.0, read_only: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the file, and make it unless ``read_only``. Raises `ConfigError` or `StorageError`."""
        self.path = path
        self._clock = clock
        self._writing, self._reading = threading.Lock(), threading.Lock()
        with self._typed("cannot open"):
            self._writer = None if read_only else _connect(path, busy_timeout, create=True)
            try:
                self._reader = _connect(path, busy_timeout, create=False)
            except BaseException:
                if self._writer is not None:
                    self._writer.close()
                raise

    def append(self, batches: Sequence[Batch]) -> int:
        """See `TraceStore`."""
        with self._transaction() as connection:
            return append(connection, batches)

    def prune(self, retention: Retention, piece: int = PIECE) -> bool:
        """See `TraceStore`."""
        with self._transaction() as connection:
            return prune(connection, retention, self._clock(), piece)

    def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Answer from one state of the file: for other tables that are kept in it."""
        with self._snapshot() as connection:
            return question(connection)

    def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change, all or nothing: for other tables that are kept in it."""
        with self._transaction() as connection:
            return change(connection)

    def check(self) -> None:
        """Write, and change nothing. Raises as `append` does."""
        with self._transaction() as connection:
            connection.execute("UPDATE ledger_meta SET facts = facts")

    def trace_facts(self, signal: str) -> list[Fact]:
        """See `TraceStore`."""
        with self._snapshot() as connection:
            return queries.trace_facts(connection, signal)

    def find(self, prefix: str) -> list[Candidate]:
        """See `TraceStore`."""
        if len(prefix.strip()) < MIN_PREFIX:
            raise ConfigError(f"{prefix!a} is too short for an id; give at least {MIN_PREFIX} characters of it")
        with self._snapshot() as connection:
            return queries.find(connection, prefix)

    def page(self, query: Query) -> Page:
        """See `TraceStore`."""
        with self._snapshot() as connection:
            return queries.page(connection, query)

    def stats(self) -> StoreStats:
        """See `TraceStore`."""
        with self._snapshot() as connection:
            return queries.stats(connection)

    def save_log(self) -> bool:
        """Copy the log into the file and cut it, for a file that is to be closed under another name; whether it could.

        SQLite does so at closing only where the file still has its name.
        """
        if self._writer is None:
            return False
        with self._writing:
            try:
                blocked, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error:
                return False
        return not blocked

    def close(self) -> None:
        """See `TraceStore`."""
        with self._writing, self._reading:
            self._reader.close()
            if self._writer is not None:
                self._writer.close()  # last, as the last connection saves the log

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        if self._writer is None:
            raise StorageError(f"{self.path} was opened to be read only")
        with self._writing, self._typed("cannot write"):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def _snapshot(self) -> Generator[sqlite3.Connection]:
        """Several statements that see the same state."""
        with self._reading, self._typed("cannot read"):
            self._reader.execute("BEGIN")
            try:
                yield self._reader
            finally:
                if self._reader.in_transaction:
                    self._reader.execute("ROLLBACK")

    @contextmanager
    def _typed(self, doing: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            kind = BrokerUnavailable if name.startswith(_HELD) else StorageError
            what = f"{doing} the ledger {self.path}: {error} {name}".rstrip()
            raise kind(f"{what}; {_advice(name, self.path)}") from error


def _advice(name: str, path: Path) -> str:
    """Return what to do about an error of SQLite."""
    if name.startswith(_HELD):
        return f"another program holds the file; find it with 'fuser {path}', and end it if it does not let go"
    if name.startswith("SQLITE_FULL"):
        return "make room on the disk; it goes on by itself then"
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return (
            f"it is damaged: move it away, with {path.name}-wal and {path.name}-shm beside it, and a router makes a "
            "new one; what can be saved of the old one, 'sqlite3 OLD .recover' saves"
        )
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH")):
        return "look at the directory and the file, their owner and mode"
    return "look at the disk and at the file: signalbus doctor --store"


def _connect(path: Path, busy_timeout: float, *, create: bool) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={'rwc' if create else 'ro'}"
    connection = sqlite3.connect(
        uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        if create:
            _make(connection, path)
        else:
            schema.check(connection)
        connection.execute("PRAGMA cache_size = -32768")
        connection.execute("PRAGMA temp_store = MEMORY")
    except BaseException:
        connection.close()
        raise
    return connection


def _make(connection: sqlite3.Connection, path: Path) -> None:
    application, tables = connection.execute(
        "SELECT application_id, (SELECT count(*) FROM sqlite_master) FROM pragma_application_id()"
    ).fetchone()
    if application != schema.APPLICATION_ID and (application or tables):
        raise ConfigError(f"{path} is the database of another program; name another file for the ledger")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # who sent a batch forgets it once it is stored
    connection.execute("PRAGMA secure_delete = OFF")  # pruning need not overwrite what it frees
    if application == schema.APPLICATION_ID:
        schema.check(connection)  # without the lock for writing, which another router may hold nearly all the time
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        schema.prepare(connection)
        connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
