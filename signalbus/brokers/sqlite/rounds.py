"""Transactions of the writer thread, with what to do when they fail. Group commit.

Everything that was submitted while the last transaction ran goes into the next one, in order. The group is formed only
once the write lock is held and the transaction has begun, so whatever is still queued has certainly not happened, and
the event loop may take it back when its deadline passes.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Sequence

from ...errors import BrokerUnavailable, SignalBusError, StorageError
from ..base import Incoming
from . import store
from .claims import Batch, Claim, Claimant, deal
from .database import Database, Replaced
from .desk import Desk
from .failures import Trouble, explain, trouble_of, typed
from .group import Group
from .intake import AnyOperation, Intake
from .lock import FairLock
from .operations import Append, Look, Publish, Settle
from .records import unpack, unpack_history

Deliveries = list[tuple[Claimant, list[Incoming]]]

_BACKOFF = (0.05, 2.0)  # seconds before something that failed is tried again: at first, at most
_BUSY_SECONDS = 0.005


class Rounds:
    """All on the writer thread. ``post`` takes answers to the event loop, ``hint`` wakes other processes."""

    def __init__(
        self,
        desk: Desk,
        database: Database,
        lock: FairLock,
        intake: Intake,
        *,
        post: Callable[[Sequence[AnyOperation], Deliveries], None],
        hint: Callable[[Sequence[str]], None],
    ) -> None:
        self._desk = desk
        self._database = database
        self._lock = lock
        self._intake = intake
        self._post = post
        self._hint = hint
        self._backoff = _BACKOFF[0]
        self.deferred: list[AnyOperation] = []  # persistent ones that could not be stored yet
        self.resume_at = 0.0  # when what failed is tried again
        self.broken: SignalBusError | None = None  # why the connection is not used any more

    def run(self) -> None:
        """Do what is queued, due and claimable, in one transaction."""
        if not self.deferred and self._intake.only_looks():
            self._answer_looks(self._take())
            return
        if self._intake.waiting_since is None:
            self._intake.waiting_since = time.monotonic()
        self._lock.acquire()
        try:
            changes, looks, hints = self._write()
            if self.broken is None and self._database.checkpoint_due:
                self._finish(changes, hints)
                changes, hints = [], []
                self._checkpoint()
        finally:
            self._lock.release()
        self._finish(changes, hints)
        if looks:
            self._answer_looks(looks)

    def stumble(self, error: Exception) -> None:
        """Pause after an error outside a transaction; stop using the connection unless it is only busy."""
        if isinstance(error, sqlite3.Error) and trouble_of(error) is Trouble.BUSY:
            self._defer([])
        else:
            self._break(error)

    def recover(self) -> bool:
        """Open anew if it is time; until that works, refuse what can be refused."""
        if time.monotonic() >= self.resume_at:
            try:
                with self._lock:
                    self._database.recover()
                self._database.verify()
            except (SignalBusError, sqlite3.Error, OSError) as error:
                self.broken = error if isinstance(error, SignalBusError) else StorageError(str(error))
                self._defer([])
            else:
                self.broken = None
                self.resume_at = 0.0
                self._desk.forget()
                self._desk.counters["reopened"] += 1
                return True
        refused: list[AnyOperation] = []
        for operation in self._intake.take_all():
            if operation.persistent:
                self.deferred.append(operation)
            else:
                operation.fail(StorageError(str(self.broken)), certain=True)
                refused.append(operation)
        self._post(refused, [])
        return False

    def leave(self) -> None:
        """Give back what we hold. If that cannot be stored now, others do it once our session's lock is gone."""
        operations, self.deferred = self.deferred, []
        hints: list[str] = []
        if self.broken is None:
            with self._lock:
                hints = self._leave(operations)
        for operation in operations:
            if operation.result is None and isinstance(operation, Settle):
                operation.result = False
        self._post(operations, [])
        self._hint(hints)

    # One transaction

    def _take(self) -> list[AnyOperation]:
        before: list[AnyOperation] = []
        if self.deferred and time.monotonic() >= self.resume_at:
            before, self.deferred = self.deferred, []
        return self._intake.take(before)

    def _write(self) -> tuple[list[AnyOperation], list[AnyOperation], list[str]]:
        """Form a group and carry it out; return its changes, its looks and the sockets to send hints to."""
        try:
            self._database.begin()
        except (sqlite3.Error, Replaced) as error:
            if isinstance(error, sqlite3.Error) and trouble_of(error) is Trouble.BUSY:
                # SQLite has waited, but what is queued may have come only now: `Intake.expire` knows how long each
                # has waited. The pause is for the rare locks that SQLite does not wait for.
                time.sleep(_BUSY_SECONDS)
                return [], [], []
            self._intake.waiting_since = None
            operations = self._take()
            self._failed(operations, error, certain=True)
            return operations, [], []
        self._intake.waiting_since = None
        operations = self._take()
        changes = [operation for operation in operations if not isinstance(operation, Look)]
        looks: list[AnyOperation] = [operation for operation in operations if isinstance(operation, Look)]
        return changes, looks, self._transact(changes, begun=True)

    def _transact(self, operations: list[AnyOperation], *, begun: bool, claiming: bool = True) -> list[str]:
        """Carry a group out; every operation has its answer afterwards, or is deferred."""
        database, desk = self._database, self._desk
        desk.short_of_space = database.short_of_space()
        group = Group(database.connection, desk)
        try:
            if not begun:
                database.begin()
            group.run(operations, claiming=claiming)
        except (sqlite3.Error, StorageError) as error:
            self._roll_back(group)
            return self._failed(operations, error, certain=True)
        try:
            database.commit(group.changes.written)
        except sqlite3.Error as error:
            self._roll_back(group)
            # The frame that makes it a commit is written last: without room for that, it certainly is none. After
            # any other error, a recovery may yet find the commit in the log.
            return self._failed(operations, error, certain=trouble_of(error) is Trouble.FULL)
        hints = group.changes.committed()
        self._backoff = _BACKOFF[0]
        desk.counters["transactions"] += 1
        try:
            database.check_identity()
        except Replaced as error:
            self._break(error)
            for operation in operations:
                if isinstance(operation, Publish):
                    operation.fail(error, certain=False)
        return hints

    def _roll_back(self, group: Group) -> None:
        try:
            self._database.rollback()
        except sqlite3.Error as error:
            self._break(error)
        group.changes.rolled_back()

    def _checkpoint(self) -> None:
        try:
            self._database.checkpoint()
        except sqlite3.Error as error:
            self._desk.counters["failed_checkpoints"] += 1
            if trouble_of(error) is Trouble.BROKEN:
                self._break(error)

    def _leave(self, operations: list[AnyOperation]) -> list[str]:
        group = Group(self._database.connection, self._desk)
        try:
            self._database.begin()
            group.run(operations, claiming=False)
            group.registry.leave()
            self._database.commit(group.changes.written)
        except (sqlite3.Error, StorageError):
            self._desk.counters["failed_transactions"] += 1
            self._roll_back(group)
            for operation in operations:
                operation.result = None
            return []
        hints = group.changes.committed()
        self._database.close()
        return hints

    # Answers

    def _finish(self, operations: Sequence[AnyOperation], hints: Sequence[str]) -> None:
        """Read what was claimed, and answer."""
        deliveries: Deliveries = []
        unread = self._desk.unread
        try:
            while unread and self.broken is None:
                deliveries.extend(self._read(unread[0]))
                del unread[0]
        except sqlite3.Error as error:
            self.stumble(error)
        answered = operations
        if self.deferred:
            deferred = set(map(id, self.deferred))
            answered = [operation for operation in operations if id(operation) not in deferred]
        self._intake.done()
        if answered or deliveries:
            self._post(answered, deliveries)
        if hints:
            self._hint(hints)

    def _read(self, batch: Batch) -> Deliveries:
        rows = store.read_batch(self._database.connection, batch.subscription, batch.session, batch.number)
        dealt: dict[Claimant, list[Incoming]] = {}
        for row, claimant in zip(rows, deal(batch.claimants, len(rows)), strict=False):
            signal, attempt, crashes, history, fanout, checksum, head, body = row
            encoded, malformed = unpack(signal, fanout, checksum, head, body)
            claim = Claim(claimant, batch.subscription, batch.session, signal, fanout != 1 or malformed is not None)
            claimant.unsettled[signal] = claim
            incoming = Incoming(
                signal=encoded,
                attempt=attempt if type(attempt) is int else 1,
                crashes=crashes if type(crashes) is int else 0,
                history=() if history is None else unpack_history(history),
                malformed=malformed,
                handle=claim,
            )
            if claimant in dealt:
                dealt[claimant].append(incoming)
            else:
                dealt[claimant] = [incoming]
            if malformed is not None:
                self._desk.counters["damaged_signals"] += 1
        return list(dealt.items())

    def _answer_looks(self, looks: list[AnyOperation]) -> None:
        for operation in looks:
            assert isinstance(operation, Look)
            try:
                operation.result = operation.read(self._database.connection)
            except sqlite3.Error as error:
                operation.fail(typed(error, str(self._desk.files.path)), certain=True)
                self.stumble(error)
        self._intake.done()
        self._post(looks, [])

    # Trouble

    def _failed(self, operations: list[AnyOperation], error: Exception, *, certain: bool) -> list[str]:
        """Give the operations of a group that failed their answers; try again what can be."""
        self._desk.counters["failed_transactions"] += 1
        trouble = trouble_of(error) if isinstance(error, sqlite3.Error) else Trouble.BROKEN
        signals = [operation for operation in operations if not isinstance(operation, Append)]
        if trouble is Trouble.FULL and len(signals) < len(operations):
            # There may be room for signals, though not for facts.
            self._give_up([operation for operation in operations if isinstance(operation, Append)], error)
            return self._transact(signals, begun=False)
        if trouble is Trouble.OPERATION and len(operations) > 1:
            return [hint for operation in operations for hint in self._transact([operation], begun=False)]
        if trouble is Trouble.OPERATION and operations:
            operations[0].fail(self._answer_to(error), certain=certain)
            return []
        if trouble in (Trouble.BROKEN, Trouble.OPERATION):
            self._break(error)
        for operation in operations:
            if operation.persistent:
                continue
            if trouble is Trouble.FULL and certain and isinstance(operation, Publish):
                operation.refuse(str(self._answer_to(error)))
            else:
                operation.fail(self._answer_to(error), certain=certain)
        persistent = [operation for operation in operations if operation.persistent]
        if trouble is Trouble.FULL and 0 < len(persistent) < len(operations):
            # Settling may need no more room than there is.
            return self._transact(persistent, begun=False, claiming=False)
        self._defer(persistent)
        return []

    def _give_up(self, facts: Sequence[AnyOperation], error: Exception) -> None:
        for operation in facts:
            operation.fail(self._answer_to(error), certain=True)
        self._desk.ledger_trouble = f"facts of the ledger cannot be stored: {self._answer_to(error)}"

    def _answer_to(self, error: Exception) -> SignalBusError:
        if not isinstance(error, sqlite3.Error):
            return StorageError(str(error))
        kind = BrokerUnavailable if trouble_of(error) is Trouble.BUSY else StorageError
        return kind(f"{self._desk.files.path}: {explain(error)}")

    def _defer(self, operations: list[AnyOperation]) -> None:
        """Keep operations for another try, after a pause that grows. Also without any: claims wait as well."""
        self.deferred.extend(operations)
        self.resume_at = time.monotonic() + self._backoff * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        self._backoff = min(self._backoff * 2, _BACKOFF[1])

    def _break(self, error: Exception) -> None:
        """Stop using the connection until `recover` has a new one."""
        if self.broken is None:
            self.broken = self._answer_to(error)
            self._desk.counters["storage_failures"] += 1
            self._defer([])
