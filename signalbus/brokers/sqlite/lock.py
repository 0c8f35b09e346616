"""The write lock: one file, `flock`, in turn.

SQLite's own busy handler polls and starves writers. Blocked `flock` callers are woken by the kernel instead. A second
lock in front, the turnstile, keeps the one that has just finished from overtaking those that wait: the first of them
holds the turnstile while it waits for the lock itself.
"""

from __future__ import annotations

import fcntl
import os

from ...errors import StorageError


class FairLock:
    """A lock between processes. Waiting has no deadline: who must not wait for ever watches from another thread."""

    def __init__(self) -> None:
        self._fds: tuple[int, int] | None = None

    def open(self, path: str) -> None:
        """Open the files, creating them. Raises `StorageError`."""
        first = -1
        try:
            first = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            second = os.open(f"{path}-turn", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if first >= 0:
                os.close(first)
            raise StorageError(
                f"cannot open the lock file {path}: {error.strerror}; check the directory, its owner and mode"
            ) from error
        self._fds = first, second

    def acquire(self) -> None:
        """Wait for the lock and take it."""
        lock, turn = self._opened()
        fcntl.flock(turn, fcntl.LOCK_EX)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def release(self) -> None:
        """Give the lock to the next one."""
        fcntl.flock(self._opened()[0], fcntl.LOCK_UN)

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def close(self) -> None:
        """Close the files. Idempotent. Closing drops a lock only if no other process inherited the files."""
        if self._fds is not None:
            for fd in self._fds:
                os.close(fd)
            self._fds = None

    def _opened(self) -> tuple[int, int]:
        assert self._fds is not None, "the lock is not open"
        return self._fds
