"""The writer thread: one per broker, the only user of its connection. Group commit.

Everything that was submitted while the last transaction ran goes into the next one, in order. The group is formed only
once the write lock is held and the transaction has begun, so whatever is still queued has certainly not happened, and
the event loop may take it back when its deadline passes.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import BrokerError, BrokerUnavailable, ConfigError, SignalBusError, StorageError
from ..base import Incoming
from . import store
from .claims import Batch, Claim, Claimant, deal
from .database import Database, Replaced
from .desk import Desk
from .failures import Trouble, explain, trouble_of, typed
from .group import Group
from .lock import FairLock
from .operations import Bury, Look, Operation, Publish, Settle
from .records import unpack, unpack_history
from .sessions import SessionLock, is_alive, remove_leftovers
from .wake import Wake

AnyOperation = Operation[Any]
Deliveries = list[tuple[Claimant, list[Incoming]]]

_GROUP_WEIGHT = 2_000  # signals a transaction, and bytes: bounds how long others wait for the lock
_GROUP_BYTES = 16 * 1024 * 1024
_POLL_SECONDS = 0.5  # between looks of a consumer whose hints may have got lost
_SWEEP_SECONDS = 1.0  # between looks after the sessions of dead processes
_LOOP_CHECK_SECONDS = 5.0  # between looks whether the event loop is still there
_BACKOFF = (0.05, 2.0)  # seconds before something that failed is tried again: at first, at most


class Writer(threading.Thread):
    """See the module. ``report`` is called on the event loop, once for each transaction that answers something."""

    def __init__(
        self,
        desk: Desk,
        database: Database,
        lock: FairLock,
        loop: asyncio.AbstractEventLoop,
        *,
        network_filesystem: bool,
        report: Callable[[Sequence[AnyOperation], Deliveries], None],
    ) -> None:
        # A daemon: a lock that another process never gives back must not keep this one from exiting.
        super().__init__(name=f"signalbus-writer {desk.files.path.name}", daemon=True)
        self._desk = desk
        self._database = database
        self._lock = lock
        self._loop = loop
        self._report = report
        self._network_filesystem = network_filesystem
        self._wake = Wake()
        self._session_lock: SessionLock | None = None

        # Shared with the event loop, under the mutex:
        self._mutex = threading.Lock()
        self._queue: deque[AnyOperation] = deque()
        self._running: list[AnyOperation] = []
        self._sleeping = False
        self._closing = False
        self._waiting_since: float | None = None
        self._fatal: str = ""

        # The thread's own:
        self._deferred: list[AnyOperation] = []
        self._backoff = _BACKOFF[0]
        self._resume_at = 0.0
        self._broken: SignalBusError | None = None
        self._looked_at = -1  # data version
        self._next_poll = 0.0
        self._next_sweep = 0.0
        self.opened: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    # On the event loop

    def submit(self, operation: AnyOperation) -> None:
        """Queue an operation. Raises `StorageError` if the thread has died."""
        with self._mutex:
            if self._fatal:
                raise StorageError(self._fatal)
            self._queue.append(operation)
            asleep, self._sleeping = self._sleeping, False
        if asleep:
            self._wake.ring()

    def expire(self, now: float, busy_timeout: float) -> list[AnyOperation]:
        """Answer what has waited too long; return what was taken out of the queue, and so never happens."""
        with self._mutex:
            since = self._waiting_since
            stuck = since is not None and now - since > busy_timeout
            expired = [op for op in self._queue if not op.persistent and (stuck or op.deadline <= now)]
            if expired:
                gone = set(map(id, expired))
                self._queue = deque(op for op in self._queue if id(op) not in gone)
            late = [op for op in self._running if op.deadline <= now]
        path = self._desk.files.path
        for operation in expired:
            held = f"another process has held {path} for {now - since:.1f} s" if since is not None else "too much to do"
            operation.expire(f"not done in time: {held}", started=False)
        for operation in late:
            operation.expire(f"no answer from the disk under {path} in time", started=True)
        return expired

    def close(self) -> None:
        """Let the thread finish what is queued, give back what it holds, and end. Idempotent."""
        with self._mutex:
            self._closing = True
            self._sleeping = False
        self._wake.ring()

    def abandon(self) -> tuple[list[AnyOperation], list[AnyOperation]]:
        """Give up on the thread; return what it has not begun, and so never does, and what may still happen."""
        with self._mutex:
            queued = list(self._queue)
            self._queue.clear()
            return queued, [*self._running, *self._deferred]

    @property
    def trouble(self) -> str:
        """Why nothing can be stored at present, if so."""
        return self._fatal or (str(self._broken) if self._broken else "")

    @property
    def waiting_since(self) -> float | None:
        """Since when it waits for the write lock, in seconds of `time.monotonic`."""
        return self._waiting_since

    def forget(self) -> None:
        """Let go of everything inherited, in a forked child, without touching the parent's."""
        self._database.leak()
        self._lock.close()
        self._wake.forget()
        if self._session_lock is not None:
            self._session_lock.forget()

    # The thread

    def run(self) -> None:
        """Open, serve, close."""
        try:
            if self._open():
                self._serve()
                self._leave()
        except BaseException as error:
            with self._mutex:
                self._fatal = f"the writer thread of {self._desk.files.path} died: {error!r}"
                left = [*self._running, *self._queue, *self._deferred]
                self._queue.clear()
            for operation in left:
                operation.fail(StorageError(self._fatal), certain=operation not in self._running)
            self._post(left, [])
            raise
        finally:
            self._release_everything()

    def _open(self) -> bool:
        try:
            self._desk.files.check_place(network_filesystem=self._network_filesystem)
            self._lock.open()
            with self._lock:
                if self._closing:
                    return False
                self._database.open(create=True)
                self._enter()
        except SignalBusError as error:
            self._call(_fail, self.opened, error)
            return False
        except sqlite3.Error as error:
            self._call(_fail, self.opened, typed(error, f"cannot open {self._desk.files.path}"))
            return False
        except OSError as error:
            text = f"cannot open {self._desk.files.path}: {error}"
            self._call(_fail, self.opened, StorageError(text))
            return False
        self._call(_succeed, self.opened)
        return True

    def _enter(self) -> None:
        desk, connection = self._desk, self._database.connection
        self._session_lock = SessionLock(desk.files.sessions)
        desk.token = self._session_lock.token
        desk.socket = self._wake.listen(desk.files.sessions, desk.token)
        self._database.begin()
        clock = desk.clock
        store.rebase_delayed(connection, clock.boot_id(), clock.boottime(), clock.wall())
        rows = store.sessions(connection)
        group = Group(connection, desk)
        group.run(())
        group.enter()
        for session, token, _ in rows:
            if not is_alive(desk.files.sessions, token):
                group.bury(session)
        self._database.commit(group.written)
        hints = group.committed()
        remove_leftovers(desk.files.sessions, {token for _, token, _ in rows} | {desk.token})
        self._wake.hint(hints)

    def _serve(self) -> None:
        hinted = False
        while not self._done():
            try:
                if self._broken is None or self._recover():
                    self._look(hinted=hinted)
                    if self._has_work():
                        self._round()
                        continue
            except (sqlite3.Error, StorageError) as error:
                self._break(error)
            hinted = self._sleep()

    def _done(self) -> bool:
        if self._loop.is_closed():
            self._closing = True  # nobody closed us, and nobody listens any more
        with self._mutex:
            return self._closing and not self._queue

    def _sleep(self) -> bool:
        """Wait for something to do; tell whether another process gave a hint."""
        timeout = self._timeout()
        with self._mutex:
            if self._closing or self._queue:
                return False
            self._sleeping = True
        hinted = self._wake.wait(timeout)
        with self._mutex:
            self._sleeping = False
        return hinted

    def _timeout(self) -> float:
        now = time.monotonic()
        waits = [_LOOP_CHECK_SECONDS]
        if self._broken is not None or self._deferred:
            waits.append(self._resume_at - now)
        if self._broken is None:
            if self._desk.claimants:
                waits.append(self._next_poll - now)
                if (due := self._desk.seconds_to_due()) is not None:
                    waits.append(due)
                waits.extend(until - now for until in self._desk.patience.values())
            if len(self._desk.topology.tokens) > 1:
                waits.append(self._next_sweep - now)
        return max(0.0, min(waits))

    def _claimable(self) -> bool:
        """Tell whether a consumer of ours has room for something that is there."""
        desk = self._desk
        if time.monotonic() < self._resume_at:
            return False  # the last transaction failed
        if desk.purging or desk.unread:
            return True
        if not desk.promising:
            return False
        now = time.monotonic()
        for subscription, claimants in desk.serving().items():
            if subscription not in desk.promising or not any(claimant.credit > 0 for claimant in claimants):
                continue
            if not store.has_ready(self._database.connection, subscription):
                desk.promising.discard(subscription)
                desk.patience.pop(subscription, None)
            elif desk.patience.get(subscription, now) <= now:
                return True
        return False

    def _look(self, *, hinted: bool) -> None:
        """See what other processes did: their signals, their deaths."""
        now = time.monotonic()
        desk, connection = self._desk, self._database.connection
        if desk.claimants and (hinted or now >= self._next_poll):
            self._next_poll = now + _POLL_SECONDS
            version = store.data_version(connection)
            if version != self._looked_at:
                self._looked_at = version
                for subscription in desk.serving():
                    desk.promising.add(subscription)
                    desk.note_due(connection, subscription)
        if now >= self._next_sweep and len(desk.topology.tokens) > 1:
            self._next_sweep = now + _SWEEP_SECONDS
            self._sweep()

    def _sweep(self) -> None:
        desk = self._desk
        tokens = desk.topology.tokens.items()
        dead = [session for session, token in tokens if not is_alive(desk.files.sessions, token)]
        if desk.session in dead:
            # Somebody removed our lock file: nobody can see that we live.
            self._restore_lock()
            dead.remove(desk.session)
        if dead:
            with self._mutex:
                self._queue.append(Bury(dead))

    def _restore_lock(self) -> None:
        assert self._session_lock is not None
        try:
            self._session_lock.restore()
        except OSError as error:
            raise StorageError(
                f"cannot lock a session file in {self._desk.files.sessions}: {error.strerror}"
            ) from error

    def _has_work(self) -> bool:
        if self._queue:
            return True
        if time.monotonic() < self._resume_at:
            return False
        due = self._desk.seconds_to_due()
        return bool(self._deferred) or (due is not None and due <= 0.0) or self._claimable()

    def _round(self) -> None:
        if self._only_looks():
            self._answer_looks(self._take())
            return
        self._waiting_since = time.monotonic()
        self._lock.acquire()
        try:
            changes, looks, hints = self._write()
            if self._database.usable and self._database.checkpoint_due and self._broken is None:
                self._finish(changes, hints)
                changes, hints = [], []
                self._checkpoint()
        finally:
            self._waiting_since = None
            self._lock.release()
        self._finish(changes, hints)
        if looks:
            self._answer_looks(looks)

    def _write(self) -> tuple[list[AnyOperation], list[AnyOperation], list[str]]:
        """Form a group and carry it out; return its changes, its looks and the sockets to send hints to."""
        try:
            self._database.begin()
        except (sqlite3.Error, Replaced) as error:
            operations = self._take()
            self._failed(operations, error, certain=True)
            return operations, [], []
        self._waiting_since = None
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
            database.commit(group.written)
        except sqlite3.Error as error:
            self._roll_back(group)
            # The frame that makes it a commit is written last: without room for that, it certainly is none. After
            # any other error, a recovery may yet find the commit in the log.
            return self._failed(operations, error, certain=trouble_of(error) is Trouble.FULL)
        hints = group.committed()
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
        group.rolled_back()

    def _failed(self, operations: list[AnyOperation], error: Exception, *, certain: bool) -> list[str]:
        """Give the operations of a group that failed their answers; try again what can be."""
        self._desk.counters["failed_transactions"] += 1
        trouble = trouble_of(error) if isinstance(error, sqlite3.Error) else Trouble.BROKEN
        if trouble is Trouble.BROKEN:
            self._break(error)
        elif trouble is Trouble.OPERATION and len(operations) > 1:
            return [hint for operation in operations for hint in self._transact([operation], begun=False)]
        elif not operations and trouble is Trouble.OPERATION:
            self._break(error)
        persistent = [operation for operation in operations if operation.persistent]
        reason = explain(error) if isinstance(error, sqlite3.Error) else str(error)
        for operation in operations:
            if operation.persistent and trouble is not Trouble.OPERATION:
                continue
            operation.fail(self._answer_to(error, reason), certain=certain)
            if trouble is Trouble.FULL and certain and isinstance(operation, Publish):
                operation.refuse(reason)
        if trouble is Trouble.OPERATION:
            return []
        if trouble is Trouble.FULL and 0 < len(persistent) < len(operations):
            # Settling may need no more room than there is.
            return self._transact(persistent, begun=False, claiming=False)
        self._defer(persistent)
        return []

    def _answer_to(self, error: Exception, reason: str) -> SignalBusError:
        if isinstance(error, sqlite3.Error) and trouble_of(error) is Trouble.BUSY:
            return BrokerUnavailable(f"{self._desk.files.path}: {reason}")
        return StorageError(f"{self._desk.files.path}: {reason}" if isinstance(error, sqlite3.Error) else reason)

    def _defer(self, operations: list[AnyOperation]) -> None:
        """Keep operations for another try, after a pause that grows. Also without any: claims wait as well."""
        self._deferred = [*operations, *self._deferred]
        self._resume_at = time.monotonic() + self._backoff * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        self._backoff = min(self._backoff * 2, _BACKOFF[1])

    def _finish(self, operations: Sequence[AnyOperation], hints: Sequence[str]) -> None:
        """Read what was claimed, and answer."""
        deliveries: Deliveries = []
        try:
            while self._desk.unread and self._broken is None:
                deliveries.extend(self._read(self._desk.unread[0]))
                del self._desk.unread[0]
        except sqlite3.Error as error:
            self._break(error)
        answered = operations
        if self._deferred:
            deferred = set(map(id, self._deferred))
            answered = [operation for operation in operations if id(operation) not in deferred]
        with self._mutex:
            self._running = []
        if answered or deliveries:
            self._post(answered, deliveries)
        if hints:
            self._wake.hint(hints)

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

    # Looks

    def _only_looks(self) -> bool:
        with self._mutex:
            looks = all(isinstance(operation, Look) for operation in self._queue)
            return bool(self._queue) and looks and not self._deferred

    def _answer_looks(self, looks: list[AnyOperation]) -> None:
        for operation in looks:
            assert isinstance(operation, Look)
            try:
                operation.result = operation.read(self._database.connection)
            except sqlite3.Error as error:
                operation.fail(typed(error, str(self._desk.files.path)), certain=True)
                if trouble_of(error) is Trouble.BROKEN:
                    self._break(error)
        with self._mutex:
            self._running = []
        self._post(looks, [])

    # Trouble

    def _break(self, error: Exception) -> None:
        """Stop using the connection until `_recover` has a new one."""
        if self._broken is None:
            path = str(self._desk.files.path)
            self._broken = typed(error, path) if isinstance(error, sqlite3.Error) else StorageError(str(error))
            self._desk.counters["storage_failures"] += 1
            self._defer([])

    def _recover(self) -> bool:
        """Open anew if it is time; until that works, refuse what can be refused."""
        assert self._broken is not None
        if time.monotonic() >= self._resume_at:
            try:
                with self._lock:
                    self._database.recover()
                self._database.verify()
            except (SignalBusError, sqlite3.Error, OSError) as error:
                self._broken = error if isinstance(error, SignalBusError) else StorageError(str(error))
                self._defer([])
            else:
                self._broken = None
                self._resume_at = 0.0
                self._looked_at = -1
                self._desk.forget()
                self._desk.counters["reopened"] += 1
                return True
        with self._mutex:
            refused = [operation for operation in self._queue if not operation.persistent]
            self._queue = deque(operation for operation in self._queue if operation.persistent)
            self._deferred.extend(self._queue)
            self._queue.clear()
        for operation in refused:
            operation.fail(StorageError(str(self._broken)), certain=True)
        self._post(refused, [])
        return False

    def _checkpoint(self) -> None:
        try:
            self._database.checkpoint()
        except sqlite3.Error as error:
            self._desk.counters["failed_checkpoints"] += 1
            if trouble_of(error) is Trouble.BROKEN:
                self._break(error)

    # The end

    def _leave(self) -> None:
        """Give back what we hold. If that cannot be stored now, others do it once our lock is gone."""
        operations, self._deferred = self._deferred, []
        hints: list[str] = []
        if self._broken is None:
            with self._lock:
                hints = self._leave_database(operations)
        for operation in operations:
            if operation.result is None and isinstance(operation, Settle):
                operation.result = False
        self._post(operations, [])
        self._wake.hint(hints)

    def _leave_database(self, operations: list[AnyOperation]) -> list[str]:
        group = Group(self._database.connection, self._desk)
        try:
            self._database.begin()
            group.run(operations, claiming=False)
            group.leave()
            self._database.commit(group.written)
        except (sqlite3.Error, StorageError):
            self._desk.counters["failed_transactions"] += 1
            self._roll_back(group)
            for operation in operations:
                operation.result = None
            return []
        hints = group.committed()
        self._database.close()
        return hints

    def _release_everything(self) -> None:
        with self._mutex:
            self._closing = True
        if self._database.usable:
            with self._lock:
                self._database.close()  # the last one to close makes a checkpoint
        if self._session_lock is not None:
            self._session_lock.close()
        self._wake.close()
        self._lock.close()
        self._call(_succeed, self.ended)

    # Helpers

    def _take(self) -> list[AnyOperation]:
        """Take the next group out of the queue."""
        taken: list[AnyOperation] = []
        weight = size = 0
        with self._mutex:
            if self._deferred and time.monotonic() >= self._resume_at:
                taken, self._deferred = self._deferred, []
            queue = self._queue
            while queue and weight < _GROUP_WEIGHT and size < _GROUP_BYTES:
                operation = queue.popleft()
                weight += operation.weight
                size += operation.size
                taken.append(operation)
            self._running = taken
        return taken

    def _post(self, operations: Sequence[AnyOperation], deliveries: Deliveries) -> None:
        self._call(self._report, operations, deliveries)

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            self._closing = True  # the loop was closed under us: nobody listens any more


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BrokerError | ConfigError) -> None:
    if not future.done():
        future.set_exception(error)
