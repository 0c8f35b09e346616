"""Filing facts into the tables that traces are made of, and forgetting old ones. All on the writer thread.

One small piece at a time, each in a transaction of its own: again and again while nothing else is to be done, and for
a fiftieth of the time while there is. What goes wrong here is a warning, and tried again later: it holds up nobody.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager

from ...trace.listing import Retention
from ...trace.prune import prune
from . import spool
from .database import Database, Replaced
from .desk import Desk
from .failures import Trouble, explain, trouble_of
from .intake import Intake
from .lock import FairLock

_QUIET_SECONDS = 0.25  # without a transaction: then there is time
_SHARE = 50  # of the time of a busy writer, a piece takes one part in so many
_PRUNED = 100  # signals of a piece
_PRUNE_SECONDS = 60.0
_AGAIN_SECONDS = 30.0  # after an error
_BUSY_SECONDS = 1.0  # after another program had the database
_TRIMMED = 100  # batches of a piece
_TOGETHER = 4  # batches of a piece that somebody waits for
_FILED_BYTES = 100_000  # that filing a batch adds to the log, roughly
_FORGOTTEN_BYTES = 4_000  # that forgetting a signal does


class Filing:
    """See the module."""

    def __init__(self, desk: Desk, database: Database, lock: FairLock, intake: Intake, retention: Retention) -> None:
        self._desk = desk
        self._database = database
        self._lock = lock
        self._intake = intake
        self._retention = retention
        self._written = 0  # bytes of the present transaction, roughly
        self._busy_at = 0.0
        self._next = 0.0  # of the next piece while the writer is busy
        self._not_before = 0.0  # after an error
        self._next_prune = 0.0
        self._pruning = False  # there is more to forget
        self._pruned_last = False

    def busy(self) -> None:
        """Note that the writer had something else to do."""
        self._busy_at = time.monotonic()

    def seconds_to_due(self, now: float) -> float:
        """Return the seconds until there is something to file or to forget, if nothing else happens."""
        due = min(self._next, self._busy_at + _QUIET_SECONDS)
        if not self._desk.spooled and not self._pruning:
            due = max(due, self._next_prune)
        return max(0.0, due - now, self._not_before - now)

    def tick(self) -> bool:
        """Do a piece if it is time; tell whether that was so."""
        now = time.monotonic()
        if self.seconds_to_due(now) > 0.0:
            return False
        forgetting = self._pruning or now >= self._next_prune
        if forgetting and not (self._desk.spooled and self._pruned_last):
            self._pruned_last = True
            self._prune(now)
        else:
            self._pruned_last = False
            self._file_one()
        done = time.monotonic()
        self._next = done + (done - now) * _SHARE
        return True

    def catch_up(self, connection: sqlite3.Connection, newest: int) -> int:
        """File a larger piece, as somebody asks; return how many facts of batches up to ``newest`` still wait.

        Never raises: damage to the ledger must not make the connection one that is not trusted.
        """
        try:
            self._file(_TOGETHER)
            return spool.waiting(connection, newest)[0]
        except (sqlite3.Error, Replaced) as error:
            self._failed(error)
            return -1

    def newest(self, connection: sqlite3.Connection) -> int:
        """Return the number of the newest batch that waits, 0 if none does, or if that cannot be told."""
        try:
            return spool.newest(connection)
        except sqlite3.Error as error:
            self._failed(error)
            return 0

    def _file(self, batches: int) -> None:
        with self._transaction() as connection:
            filed, unreadable = spool.file(connection, batches)
            self._written = filed * _FILED_BYTES
        self._desk.spooled = filed == batches
        self._desk.ledger_trouble = ""
        if unreadable:
            self._desk.counters["facts_unreadable"] += unreadable

    def _file_one(self) -> None:
        try:
            self._file(1)
        except (sqlite3.Error, Replaced) as error:
            self._failed(error)

    def _prune(self, now: float) -> None:
        """Forget a piece of what is not to be kept any more."""
        limit = self._retention.bytes
        try:
            with self._transaction() as connection:
                more = prune(connection, self._retention, self._desk.clock.wall(), _PRUNED)
                if not more and limit is not None and spool.waiting(connection)[1] > limit:
                    self._desk.counters["facts_trimmed"] += spool.trim(connection, _TRIMMED)
                    more = True
                self._written = _PRUNED * _FORGOTTEN_BYTES if more else 0
        except (sqlite3.Error, Replaced) as error:
            self._failed(error)
            return
        self._pruning = more
        self._next_prune = now + _PRUNE_SECONDS

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        """A transaction under the write lock, and a checkpoint if one is due."""
        intake, database = self._intake, self._database
        if intake.waiting_since is None:
            intake.waiting_since = time.monotonic()  # whatever is submitted meanwhile waits for the lock as well
        with self._lock:
            try:
                database.begin()
            finally:
                intake.waiting_since = None
            try:
                yield database.connection
                database.commit(self._written)
            except BaseException:
                database.rollback()  # before others may write
                raise
            if database.checkpoint_due:
                database.checkpoint()

    def _failed(self, error: sqlite3.Error | Replaced) -> None:
        if isinstance(error, sqlite3.Error) and trouble_of(error) is Trouble.BUSY:
            self._not_before = time.monotonic() + _BUSY_SECONDS
            return
        self._not_before = time.monotonic() + _AGAIN_SECONDS
        why = explain(error) if isinstance(error, sqlite3.Error) else str(error)
        self._desk.ledger_trouble = f"facts of the ledger cannot be filed: {why}"
