"""The store of a router while it runs: whatever happens to its file, the router goes on and says what is wrong.

A file that is locked, full or damaged raises at each call, and works again once the cause is gone. One that was moved
away or replaced is opened anew: else facts would go, with success, to a file that nobody can find.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ..deadletters import schema as deadletters
from ..errors import BrokerError, BrokerUnavailable, ConfigError, StorageError
from ..ledger import Batch, Fact
from ..trace.listing import Candidate, Page, Query, Retention, StoreStats
from ..trace.store import SqliteStore

log = logging.getLogger(__name__)

T = TypeVar("T")
Place = tuple[int, int]

BUSY_SECONDS = 5.0
PIECE = 4_000  # signals to forget at a time: more than are stored while the next piece waits for its turn


class RouterStore:
    """See the module. All calls block, and may come from several threads.

    ``trouble`` says why the newest call failed; it is empty again once one has worked.
    """

    def __init__(self, path: Path, *, busy_timeout: float | None = None) -> None:
        self.path = path
        self.trouble = ""
        self._busy_timeout = BUSY_SECONDS if busy_timeout is None else busy_timeout
        self._lock = threading.Lock()  # of what is open, not of writing: SqliteStore sees to that
        self._store: SqliteStore | None = None
        self._place: Place | None = None
        self._log = self._beside("-wal")
        self._log_place: Place | None = None
        self._given_up: list[SqliteStore] = []
        self._closed = True

    def open(self) -> None:
        """Open the file, and make it if it is not there. Idempotent; if it fails, the next call tries it again.

        Raises `ConfigError` for the file of another program or of a newer version, else as the other calls do.
        """
        with self._lock:
            self._closed = False
            try:
                self._opened()
            except (BrokerError, ConfigError) as error:
                self.trouble = str(error)
                raise

    def append(self, batches: Sequence[Batch]) -> int:
        """See `TraceStore.append`."""
        return self._call(lambda store: store.append(batches), writes=True)

    def prune(self, retention: Retention, piece: int = PIECE) -> bool:
        """See `TraceStore.prune`."""
        return self._call(lambda store: store.prune(retention, piece), writes=True)

    def trace_facts(self, signal: str) -> list[Fact]:
        """See `TraceStore`."""
        return self._call(lambda store: store.trace_facts(signal))

    def find(self, prefix: str) -> list[Candidate]:
        """See `TraceStore`."""
        return self._call(lambda store: store.find(prefix))

    def page(self, query: Query) -> Page:
        """See `TraceStore`."""
        return self._call(lambda store: store.page(query))

    def stats(self) -> StoreStats:
        """See `TraceStore`."""
        return self._call(SqliteStore.stats)

    def read(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Answer from one state of the file, which has the tables of dead letters too."""
        return self._call(lambda store: store.read(question))

    def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change, all or nothing; it is on disk when this returns."""
        return self._call(lambda store: store.write(change), writes=True)

    def check(self) -> None:
        """Look whether it can be written. Raises as the other calls do."""
        self._call(SqliteStore.check, writes=True)

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._closed = True
            self._drop()

    def _call(self, work: Callable[[SqliteStore], T], *, writes: bool = False) -> T:
        store = self._ready()
        try:
            answer = work(store)
        except BrokerError as error:
            raise self._failed(error, lasting=isinstance(error, StorageError) and not _is_full(error)) from error
        if self.trouble and writes:  # a full disk can be read
            log.warning("the ledger %s works again", self.path)
            self.trouble = ""
        return answer

    def _ready(self) -> SqliteStore:
        try:
            with self._lock:
                return self._opened()
        except ConfigError as error:  # another program's file has come in the place of ours
            raise self._failed(StorageError(str(error)), lasting=True) from error
        except BrokerError as error:
            raise self._failed(error, lasting=isinstance(error, StorageError)) from error

    def _failed(self, error: BrokerError, *, lasting: bool) -> BrokerError:
        self.trouble = str(error)
        if lasting:
            with self._lock:
                self._drop()  # the next call opens it anew
        return error

    def _opened(self) -> SqliteStore:
        if self._closed:
            raise BrokerUnavailable(f"the ledger {self.path} is not open")
        if self._store is not None and (self._place, self._log_place) != (_place(self.path), _place(self._log)):
            log.warning("the ledger %s was moved or replaced; it is opened anew", self.path)
            self._leave()
        if self._store is None:
            self._store = self._made()
            self._place, self._log_place = _place(self.path), _place(self._log)
        return self._store

    def _made(self) -> SqliteStore:
        store = SqliteStore(self.path, busy_timeout=self._busy_timeout)
        try:
            store.write(deadletters.prepare)
        except BaseException:
            store.close()
            raise
        return store

    def _drop(self) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        if _place(self._log) in (None, self._log_place):
            store.close()
        else:
            self._given_up.append(store)  # closing removes "the" log by its name: here, that of somebody else

    def _leave(self) -> None:
        """Close a file that has lost its name, and take its log along: SQLite would give it to the next file."""
        store = self._store
        saved = store is not None and store.save_log()
        self._drop()
        if _place(self._log) != self._log_place:
            return
        if not saved:
            self._log.rename(f"{self._log}-{secrets.token_hex(4)}")
        for name in ("-wal", "-shm"):
            self._beside(name).unlink(missing_ok=True)

    def _beside(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}{name}")


def _place(path: Path) -> Place | None:
    """Return which file is there, None if none is."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _is_full(error: BaseException) -> bool:
    return getattr(error.__cause__, "sqlite_errorname", "").startswith("SQLITE_FULL")
