"""An archive of JSON lines: files that rotate, each entry once, on disk before it is said to be.

Knows files and keys, nothing of signals. Entries that are added at about the same time share one write and one fsync.
The archive is its own index: at the start the keys of the newest ``window`` entries are read back, and only those
are recognised as duplicates later.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX, SUFFIX = "signals-", ".jsonl"
LOCK = ".lock"

Entry = Mapping[str, object]
KeyOf = Callable[[Entry], str]


class ArchiveInUse(Exception):
    """Raised when another process writes to the directory."""


@dataclass(slots=True)
class _Batch:
    """Entries that are written together, and the future that their writers wait for."""

    written: asyncio.Future[None]
    lines: dict[str, bytes]


class Archive:
    """Writes entries to ``signals-00000001.jsonl``, ``-00000002`` … in a directory that it locks."""

    def __init__(self, directory: Path, *, key: KeyOf, max_bytes: int, window: int) -> None:
        """Lock the directory, mend the newest file, read the newest keys. Raises `ArchiveInUse` and `OSError`."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._window = window
        self._keys: OrderedDict[str, None] = OrderedDict()
        self._batch: _Batch | None = None
        self._writing: _Batch | None = None
        self._writer: asyncio.Task[None] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(directory)
        try:
            files = self._files()
            if files:
                _mend(files[-1])
            self._read_keys(files, key)
            self._number = _number(files[-1]) if files else 0
            self._file = _append_to(files[-1]) if files else self._next_file()
        except BaseException:
            os.close(self._lock)
            raise

    async def add(self, key: str, entry: Entry) -> bool:
        """Add an entry; returns when it is on disk, False if an entry with this key is there already."""
        if key in self._keys:
            return False
        for batch in (self._writing, self._batch):
            if batch is not None and key in batch.lines:
                await asyncio.shield(batch.written)  # the copy shares the fate of the first
                return False
        if self._batch is None:
            self._batch = _Batch(asyncio.get_running_loop().create_future(), {})
        batch = self._batch
        batch.lines[key] = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_batches())
        await asyncio.shield(batch.written)
        return True

    def close(self) -> None:
        """Close the file and give the directory free. Everything that `add` returned for is on disk already."""
        for descriptor in (self._file, self._lock):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    async def _write_batches(self) -> None:
        while self._batch is not None:
            batch = self._writing = self._batch
            self._batch = None
            try:
                await asyncio.to_thread(self._write, b"".join(batch.lines.values()))
            except OSError as error:
                self._writing = None
                batch.written.set_exception(error)
                batch.written.exception()  # writers that were cancelled do not look
                continue
            self._writing = None
            for key in batch.lines:
                self._remember(key)
            batch.written.set_result(None)

    def _write(self, data: bytes) -> None:
        """Append and sync. After an error the file ends where it did, or a new one is begun."""
        size = os.fstat(self._file).st_size
        if size and size + len(data) > self._max_bytes:
            os.close(self._file)
            self._file, size = self._next_file(), 0
        try:
            _write_all(self._file, data)
            os.fdatasync(self._file)
        except OSError:
            # What a failed sync left in the page cache is unknown: never append to it (LWN 752063, "fsyncgate").
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            os.close(self._file)
            self._file = self._next_file()
            raise

    def _next_file(self) -> int:
        while True:
            self._number += 1
            path = self._directory / f"{PREFIX}{self._number:08}{SUFFIX}"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
            except FileExistsError:
                continue
            _sync_directory(self._directory)
            return descriptor

    def _files(self) -> list[Path]:
        return sorted(
            path
            for path in self._directory.glob(f"{PREFIX}*{SUFFIX}")
            if path.is_file() and path.name[len(PREFIX) : -len(SUFFIX)].isdigit()
        )

    def _read_keys(self, files: list[Path], key: KeyOf) -> None:
        """Remember the keys of the newest entries, the oldest of them first."""
        newest: list[list[str]] = []
        count = 0
        for path in reversed(files):
            newest.append(_keys_of(path, key))
            count += len(newest[-1])
            if count >= self._window:
                break
        for keys in reversed(newest):
            for found in keys:
                self._remember(found)

    def _remember(self, key: str) -> None:
        self._keys[key] = None
        if len(self._keys) > self._window:
            self._keys.popitem(last=False)


def _locked(directory: Path) -> int:
    """Lock a directory until the descriptor is closed or the process dies."""
    descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise ArchiveInUse(f"process {owner} writes to {directory} already") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _mend(path: Path) -> None:
    """Cut off what follows the last whole entry: its writer was killed, so nobody was told that it is there."""
    data = path.read_bytes()
    end = len(data)
    while end:
        start = data.rfind(b"\n", 0, end - 1) + 1
        if data[end - 1 : end] == b"\n" and _parsed(data[start:end]) is not None:
            break
        end = start
    if end < len(data):
        log.warning("%s: cut off %d bytes of an entry that was not finished", path, len(data) - end)
        with path.open("rb+") as file:
            file.truncate(end)
            os.fsync(file.fileno())


def _keys_of(path: Path, key: KeyOf) -> list[str]:
    keys: list[str] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            entry = _parsed(line)
            if entry is None:
                log.warning("%s: line %d is damaged; it is left as it is", path, number)
            else:
                keys.append(key(entry))
    return keys


def _parsed(line: bytes) -> Entry | None:
    try:
        entry: object = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _number(path: Path) -> int:
    return int(path.name[len(PREFIX) : -len(SUFFIX)])


def _append_to(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
