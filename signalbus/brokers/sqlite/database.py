"""The connection to the file: transactions, checkpoints, and what to do when either can no longer be trusted.

All of it on the writer thread. Whoever begins, checkpoints, recovers or closes holds the write lock.
"""

from __future__ import annotations

import ctypes
import sqlite3
import time

from ...config import SqliteUrl
from ...errors import StorageError
from . import schema, store
from .files import Files, Identity

_TRANSACTION_BYTES = 6 * 4_120  # the pages that even the smallest transaction adds to the log
_CHECKPOINT_BYTES = 4 * 1024 * 1024  # as SQLite's own default of 1000 pages
_TRUNCATE_BYTES = 64 * 1024 * 1024  # a log this long is cut, not only begun anew
WAL_CAP_BYTES = 256 * 1024 * 1024  # beyond this the operator is warned
_SPACE_SECONDS = 1.0  # between looks at the free space


class Replaced(StorageError):
    """Raised when the database's path leads to another file than the one that is open, or to none."""


class Database:
    """One open file. `open` before anything else."""

    def __init__(self, url: SqliteUrl, files: Files) -> None:
        self._url = url
        self._files = files
        self._connection: sqlite3.Connection | None = None
        self._identity: Identity = ()
        self._undisturbed: tuple[int, int, int] | None = None
        self._written = 0  # bytes in the log since the last checkpoint, roughly
        self._space: tuple[float, str] = (0.0, "")
        self.warning = ""

    @property
    def connection(self) -> sqlite3.Connection:
        """The open connection."""
        assert self._connection is not None, "the database is not open"
        return self._connection

    @property
    def usable(self) -> bool:
        """Whether there is a connection."""
        return self._connection is not None

    def open(self, *, create: bool) -> None:
        """Open the file. Raises as `schema.connect`."""
        connection = schema.connect(self._url, self._files, create=create)
        try:
            store.topology_counter(connection)  # the first read makes SQLite open its other two files
            self._identity = self._files.identity()
            self._undisturbed = None
        except BaseException:
            # Another broker in this process may still have a removed file open, which SQLite shares within a process.
            connection.close()
            raise
        self._connection = connection
        self._written = self._files.wal_size()

    def begin(self) -> None:
        """Begin to write. Raises `Replaced`, or `sqlite3.Error` when nothing has begun."""
        self.check_identity()
        self.connection.execute("BEGIN IMMEDIATE")

    def commit(self, written: int) -> None:
        """Make the transaction durable; ``written`` is the bytes that it changed, roughly."""
        self.connection.execute("COMMIT")
        self._written += _TRANSACTION_BYTES + written

    def rollback(self) -> None:
        """End a transaction that failed; SQLite may have done so itself."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def check_identity(self) -> None:
        """Raise `Replaced` unless the paths still lead to the files that are open.

        Otherwise commits would go, with success, to files that nobody can open again.
        """
        try:
            directory = self._files.directory_state()
            if directory is not None and directory == self._undisturbed:
                return  # one look instead of three: no name changed since they were compared
            self._undisturbed = None
            found = self._files.identity()
        except OSError as error:
            raise Replaced(
                f"{error.filename} was removed or made inaccessible while signalbus had it open ({error.strerror}); "
                "put it back, or stop all users of the database before replacing it"
            ) from error
        if found != self._identity:
            raise Replaced(
                f"{self._files.path} or its -wal or -shm file was replaced while signalbus had it open; "
                "put it back, or stop all users of the database before replacing it"
            )
        self._undisturbed = directory

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough was written to make `checkpoint` worth it."""
        return self._written >= _CHECKPOINT_BYTES

    def checkpoint(self) -> None:
        """Copy the log into the database, as far as readers allow. Raises `sqlite3.Error`."""
        self._written = 0
        _, pages, copied = store.checkpoint(self.connection, "PASSIVE")
        size = self._files.wal_size()
        if pages == copied and size > _TRUNCATE_BYTES:
            self._truncate()
            size = self._files.wal_size()
        self.warning = ""
        if size > WAL_CAP_BYTES:
            self.warning = (
                f"{self._files.wal} has grown to {size >> 20} MiB, as a program keeps a read transaction open; "
                "find it with 'fuser' and end it"
            )

    def short_of_space(self) -> str:
        """Return why publishes must be refused, if they must; looks at the file system once a second."""
        now = time.monotonic()
        if now - self._space[0] >= _SPACE_SECONDS:
            reason = ""
            if (free := self._files.free_bytes()) is not None and free < self._url.min_free_bytes:
                reason = (
                    f"only {free >> 20} MiB are free where {self._files.path} is, less than min_free_bytes "
                    f"({self._url.min_free_bytes >> 20} MiB); free some space"
                )
            self._space = now, reason
        return self._space[1]

    def recover(self) -> None:
        """Open anew. Raises `StorageError`, `ConfigError`, `BrokerUnavailable` or `sqlite3.Error`."""
        if self._connection is not None:
            self._save_the_log()
            self._connection.close()
            self._connection = None
        self.open(create=False)

    def verify(self) -> None:
        """Check the structure of the file, or close it and raise `StorageError`. Needs no lock."""
        try:
            schema.verify(self.connection, self._files)
        except BaseException:
            self.connection.close()
            self._connection = None
            raise

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._connection is None:
            return
        if self._files.wal_identity() not in (None, self._identity[1]):
            # Closing the last connection removes "the" -wal file by its name: here, that of somebody else.
            self.leak()
            return
        replaced = self._files.is_replaced(self._identity[0])
        connection, self._connection = self._connection, None
        connection.close()
        if replaced:
            # SQLite would take our log for that of the file that came in our place, and damage it.
            self._files.set_log_aside()

    def leak(self) -> None:
        """Keep the connection from ever being closed: in a forked child, closing it would damage the parent's."""
        if self._connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            self._connection = None

    def _truncate(self) -> None:
        self.connection.execute("PRAGMA busy_timeout = 0")  # a reader may stand in the way: then another time
        try:
            store.checkpoint(self.connection, "TRUNCATE")
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {int(self._url.busy_timeout * 1000)}")

    def _save_the_log(self) -> None:
        """Before the connection is closed: if its log lost its name, copy what is in it into the database."""
        try:
            found = self._files.path.stat()
        except OSError as error:
            raise Replaced(f"{self._files.path} is gone while signalbus has it open; put it back") from error
        if (found.st_dev, found.st_ino) != self._identity[0]:
            raise Replaced(
                f"{self._files.path} was replaced while signalbus had it open; put it back, or restart all its users"
            )
        if self._files.has_wal():
            return
        self.rollback()
        blocked, pages, copied = store.checkpoint(self.connection, "TRUNCATE")
        if blocked or pages != copied:
            raise Replaced(f"{self._files.wal} was removed, and a reader keeps it from being saved; end it")
        # Others that still use the nameless log see from this that they must open anew as well.
        self._files.remove_shm()
