"""A connection of our own to the file that has dead letters in it. Calls block: a service runs them in a thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ..errors import BrokerUnavailable, StorageError

T = TypeVar("T")


class LetterFile:
    """Reads, and writes if it was opened for that. May be called from several threads, which take turns."""

    def __init__(self, path: Path, *, busy_timeout: float = 5.0, read_only: bool = False) -> None:
        """Open a file that exists. Raises `StorageError`."""
        self.path = path
        self._turn = threading.Lock()
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        with self._typed("cannot open"):
            self._connection = sqlite3.connect(
                uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False
            )
            self._set_up(read_only=read_only)

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Answer from one state of the file."""
        return self._transact("BEGIN", query, "cannot read")

    def write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        """Make a change, all or nothing; it is on disk when this returns."""
        return self._transact("BEGIN IMMEDIATE", change, "cannot write")

    def close(self) -> None:
        """Close it. Idempotent."""
        with self._turn:
            self._connection.close()

    def _transact(self, begin: str, call: Callable[[sqlite3.Connection], T], doing: str) -> T:
        with self._turn, self._typed(doing):
            self._connection.execute(begin)
            try:
                result = call(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
            return result

    def _set_up(self, *, read_only: bool) -> None:
        try:
            # A flipped bit in text must not make a whole result unreadable.
            self._connection.text_factory = _text
            self._connection.execute("PRAGMA temp_store = MEMORY")
            if not read_only:
                self._connection.execute("PRAGMA synchronous = FULL")  # who gave it to us forgets it once it is stored
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def _typed(self, doing: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            kind = BrokerUnavailable if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")) else StorageError
            raise kind(f"{doing} the dead letters in {self.path}: {error} {name}".rstrip()) from error


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")
