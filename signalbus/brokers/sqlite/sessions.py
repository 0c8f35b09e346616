"""Session locks: a file that its process holds locked, so that the kernel tells exactly who is alive.

The lock outlives everything but its process: a stopped (SIGSTOP) one still holds it, a killed one never does.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from ...errors import StorageError

_SUFFIXES = (".lock", ".sock", ".call")  # its lock, its sockets for hints and for requests


class SessionLock:
    """The lock of one session, held from construction to `close`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            self.token, self._fd = self._take()
        except OSError as error:
            raise _unusable(directory, error) from error

    def restore(self) -> bool:
        """Make the lock visible again if somebody removed its file, and tell so. Raises `StorageError`."""
        if is_alive(self._directory, self.token):
            return False
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(_path(self._directory, self.token), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self._directory, error) from error
        fcntl.flock(fd, fcntl.LOCK_EX)
        self.forget()
        self._fd = fd
        return True

    def close(self) -> None:
        """Remove the file and release the lock. Idempotent."""
        if self._fd >= 0:
            remove(self._directory, self.token)
            self.forget()

    def forget(self) -> None:
        """Close our copy of the file only: for a forked child, whose parent keeps the lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _take(self) -> tuple[str, int]:
        while True:
            token = secrets.token_hex(8)
            fd = os.open(_path(self._directory, token), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Between creating and locking it, a sweep may have taken it for a dead session's.
            if os.fstat(fd).st_nlink:
                return token, fd
            os.close(fd)


def is_alive(directory: Path, token: str) -> bool:
    """Tell whether the process that holds this session's lock lives. Where it cannot be told, it does."""
    try:
        fd = os.open(_path(directory, token), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # out of files, or not ours to read: no reason to take its work away
    try:
        # Shared, so that two who ask at the same time do not take each other for the owner.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def remove(directory: Path, token: str) -> None:
    """Remove the lock file of a session that is over. Idempotent."""
    _path(directory, token).unlink(missing_ok=True)


def remove_leftovers(directory: Path, known: set[str]) -> None:
    """Remove the files of dead processes that no session row names (they died while opening or closing)."""
    found = [path for path in directory.iterdir() if path.suffix in _SUFFIXES]
    left = {path.stem for path in found} - known
    dead = {token for token in left if not is_alive(directory, token)}
    for path in found:
        if path.stem in dead:
            path.unlink(missing_ok=True)


def _unusable(directory: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot lock a session file in {directory}: {error.strerror}; check its owner and mode")


def _path(directory: Path, token: str) -> Path:
    return directory / f"{token}.lock"
