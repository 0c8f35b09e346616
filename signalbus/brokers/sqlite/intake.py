"""What the event loop has asked for and the writer thread has not done yet: the one place that both touch."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import StorageError
from .operations import Look, Operation

AnyOperation = Operation[Any]

_GROUP_WEIGHT = 2_000  # signals a transaction, and bytes: bounds how long others wait for the lock
_GROUP_BYTES = 16 * 1024 * 1024


class Intake:
    """A queue of operations, and those being done. ``ring`` wakes the writer thread."""

    def __init__(self, path: Path, ring: Callable[[], None]) -> None:
        self._path = path
        self._ring = ring
        self._mutex = threading.Lock()
        self._queue: deque[AnyOperation] = deque()
        self._running: list[AnyOperation] = []
        self._asleep = False
        self.closing = False  # nothing new comes; what is queued is still done
        self.fatal = ""  # why the thread has died
        self.waiting_since: float | None = None  # for the write lock, in seconds of `time.monotonic`

    # On the event loop

    def submit(self, operation: AnyOperation) -> None:
        """Queue an operation. Raises `StorageError` if the thread has died."""
        operation.since = time.monotonic()
        with self._mutex:
            if self.fatal:
                raise StorageError(self.fatal)
            self._queue.append(operation)
            asleep, self._asleep = self._asleep, False
        if asleep:
            self._ring()

    def expire(self, now: float, busy_timeout: float) -> list[AnyOperation]:
        """Answer what has waited too long; return what was taken out of the queue, and so never happens.

        Too long is until its deadline, or ``busy_timeout`` seconds for the write lock.
        """
        with self._mutex:
            since = self.waiting_since
            too_old = now - busy_timeout if since is not None and now - since > busy_timeout else -1.0
            expired = [op for op in self._queue if not op.persistent and (op.deadline <= now or op.since <= too_old)]
            if expired:
                gone = set(map(id, expired))
                self._queue = deque(op for op in self._queue if id(op) not in gone)
            late = [op for op in self._running if op.deadline <= now]
        why = f"another process has held it for {now - since:.1f} s" if since is not None else "the writer is busy"
        for operation in expired:
            operation.expire(f"{self._path}: not done in time, {why}", started=False)
        for operation in late:
            operation.expire(f"{self._path}: no answer from the disk in time", started=True)
        return expired

    def close(self) -> None:
        """Let the thread finish what is queued, and end. Idempotent."""
        self.closing = True
        self._ring()

    def abandon(self) -> tuple[list[AnyOperation], list[AnyOperation]]:
        """Give up on the thread; return what it has not begun, and so never does, and what may still happen."""
        with self._mutex:
            queued = list(self._queue)
            self._queue.clear()
            return queued, list(self._running)

    # On the writer thread

    def __bool__(self) -> bool:
        """Whether anything is queued."""
        return bool(self._queue)

    def push(self, operation: AnyOperation) -> None:
        """Queue an operation of the thread's own."""
        with self._mutex:
            self._queue.append(operation)

    def fall_asleep(self) -> bool:
        """Make the next `submit` ring; no if there is something to do already."""
        with self._mutex:
            self._asleep = not self.closing and not self._queue
            if self._asleep:
                self.waiting_since = None
            return self._asleep

    def wake_up(self) -> None:
        """Make `submit` save its ring."""
        with self._mutex:
            self._asleep = False

    def take(self, before: list[AnyOperation]) -> list[AnyOperation]:
        """Take the next group out of the queue, behind those of ``before``."""
        taken = before
        weight = size = 0
        with self._mutex:
            queue = self._queue
            while queue and weight < _GROUP_WEIGHT and size < _GROUP_BYTES:
                operation = queue.popleft()
                weight += operation.weight
                size += operation.size
                taken.append(operation)
            self._running = taken
        return taken

    def take_all(self) -> list[AnyOperation]:
        """Take everything out of the queue."""
        with self._mutex:
            taken = list(self._queue)
            self._queue.clear()
        return taken

    def done(self) -> None:
        """Note that the group that was taken has its answers."""
        with self._mutex:
            self._running = []

    def only_looks(self) -> bool:
        """Tell whether all that is queued only reads."""
        with self._mutex:
            return bool(self._queue) and all(isinstance(operation, Look) for operation in self._queue)

    def die(self, reason: str) -> tuple[list[AnyOperation], list[AnyOperation]]:
        """Refuse everything from now on; return what is queued and what was being done."""
        with self._mutex:
            self.fatal = reason
            queued = list(self._queue)
            self._queue.clear()
            return queued, list(self._running)
