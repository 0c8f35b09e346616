"""Queues in a SQLite file, by others: one call at a time, as they have no other way; as durable as they can be made."""

from __future__ import annotations

import importlib.util
import queue
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from .figures import BenchmarkError
from .load import BODY

LITEQUEUE = "litequeue"
PERSIST_QUEUE = "persist-queue"
HUEY = "huey, SQLite"


class EmbeddedQueue(Protocol):
    """A queue in a file."""

    def put(self) -> None:
        """Store a message; returns when it is stored."""
        ...

    def take(self) -> bool:
        """Take a message, and say that it is done; no if there is none."""
        ...

    def size(self) -> int:
        """Return how many messages wait."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class _LiteQueue:
    """litequeue, with synchronous=FULL instead of its NORMAL, which loses commits in a power cut."""

    def __init__(self, path: Path) -> None:
        from litequeue import LiteQueue

        self._queue = LiteQueue(str(path))
        self._queue.conn.execute("PRAGMA synchronous = FULL")
        self._text = BODY.decode("latin-1")

    def put(self) -> None:
        self._queue.put(self._text)

    def take(self) -> bool:
        message = self._queue.pop()
        if message is None:
            return False
        self._queue.done(message.message_id)
        return True

    def size(self) -> int:
        return int(self._queue.qsize())

    def close(self) -> None:
        self._queue.close()


class _PersistQueue:
    """persist-queue's SQLiteAckQueue: SQLite's default, FULL."""

    def __init__(self, path: Path) -> None:
        from persistqueue import SQLiteAckQueue

        self._queue = SQLiteAckQueue(str(path.parent), db_file_name=path.name, auto_commit=True)

    def put(self) -> None:
        self._queue.put(BODY)

    def take(self) -> bool:
        try:
            item = self._queue.get(block=False)
        except queue.Empty:
            return False
        except Exception as error:
            if type(error).__name__ == "Empty":  # its own, which is no relation of the standard library's
                return False
            raise
        self._queue.ack(item)
        return True

    def size(self) -> int:
        return int(self._queue.size)

    def close(self) -> None:
        self._queue.close()


class _Huey:
    """huey's SqliteHuey with fsync. It removes a message before the task runs: at most once."""

    def __init__(self, path: Path) -> None:
        from huey import SqliteHuey

        self._huey = SqliteHuey("benchmark", filename=str(path), fsync=True, results=False)
        self._task = self._huey.task()(_nothing)

    def put(self) -> None:
        self._task(BODY)

    def take(self) -> bool:
        task = self._huey.dequeue()
        if task is None:
            return False
        self._huey.execute(task)
        return True

    def size(self) -> int:
        return int(self._huey.pending_count())

    def close(self) -> None:
        self._huey.storage.close()


def _nothing(body: bytes) -> None: ...


_QUEUES: dict[str, tuple[str, Callable[[Path], EmbeddedQueue]]] = {
    LITEQUEUE: ("litequeue", _LiteQueue),
    PERSIST_QUEUE: ("persistqueue", _PersistQueue),
    HUEY: ("huey", _Huey),
}


def peers() -> list[str]:
    """Return those that are installed."""
    return [name for name, (package, _) in _QUEUES.items() if importlib.util.find_spec(package) is not None]


def publish(name: str, path: Path, count: int) -> float:
    """Put ``count`` messages; return how many a second."""
    found = _opened(name, path)
    try:
        started = time.perf_counter()
        for _ in range(count):
            found.put()
        elapsed = time.perf_counter() - started
        if found.size() != count:
            raise BenchmarkError(f"{name} holds {found.size()} messages, not {count}; the figure would mean nothing")
    finally:
        found.close()
    return count / elapsed


def round_trip(name: str, path: Path, count: int) -> float:
    """Put and take ``count`` messages, one after another; return how many a second."""
    found = _opened(name, path)
    try:
        started = time.perf_counter()
        for _ in range(count):
            found.put()
            if not found.take():
                raise BenchmarkError(f"{name} has lost a message")
        return count / (time.perf_counter() - started)
    finally:
        found.close()


def _opened(name: str, path: Path) -> EmbeddedQueue:
    return _QUEUES[name][1](path)


WORKS = {"publish": publish, "round_trip": round_trip}
