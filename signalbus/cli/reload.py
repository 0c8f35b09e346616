"""Noticing that source files changed, by asking for their times; a few hundred ``stat`` calls a second cost nothing."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from pathlib import Path

INTERVAL_SECONDS = 0.25

States = dict[Path, tuple[int, int, int]]
"""Time of the last change in nanoseconds, size and inode of each file that is there."""


def watched_files() -> frozenset[Path]:
    """Return the source files of the imported modules, without those of Python and of installed packages."""
    files: set[Path] = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(".py"):
            path = Path(name).absolute()
            if not _installed(path):
                files.add(path)
    return frozenset(files)


def files_of(error: BaseException) -> frozenset[Path]:
    """Return the source files that an error came from."""
    names = {frame.filename for frame in traceback.extract_tb(error.__traceback__)}
    if isinstance(error, SyntaxError) and error.filename:
        names.add(error.filename)
    paths = (Path(name).absolute() for name in names)
    return frozenset(path for path in paths if path.exists() and not _installed(path))


async def wait_changed(files: frozenset[Path], begun: int) -> Path:
    """Wait until one of ``files`` is written or replaced, and return it.

    ``begun`` is the time in nanoseconds before the first of them was read: what was written between that and this
    call has changed as well.
    """
    before = _states(files)
    for path, (changed, _, _) in before.items():
        # A time in the future is a wrong clock, on which we would start again for ever.
        if begun < changed <= time.time_ns():
            return path
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        for path, state in _states(files).items():  # one that is missing is just being replaced by an editor
            if before.get(path) != state:
                return path


def _states(files: frozenset[Path]) -> States:
    states: States = {}
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue
        states[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return states


def _installed(path: Path) -> bool:
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    return "site-packages" in path.parts or any(path.is_relative_to(prefix) for prefix in prefixes)
