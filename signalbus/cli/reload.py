"""Noticing that source files changed, by asking for their times; a few hundred ``stat`` calls a second cost nothing."""

from __future__ import annotations

import asyncio
import sys
import traceback
from pathlib import Path

INTERVAL_SECONDS = 0.25

Times = dict[Path, int]


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


async def wait_changed(files: frozenset[Path]) -> Path:
    """Wait until one of ``files`` is written, replaced or removed, and return it."""
    before = _times(files)
    while True:
        await asyncio.sleep(INTERVAL_SECONDS)
        now = _times(files)
        for path in files:
            if before.get(path) != now.get(path) and path in now:  # an editor that replaces it is between two states
                return path


def _times(files: frozenset[Path]) -> Times:
    times: Times = {}
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue
        times[path] = status.st_mtime_ns ^ status.st_size ^ status.st_ino
    return times


def _installed(path: Path) -> bool:
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix}
    return "site-packages" in path.parts or any(path.is_relative_to(prefix) for prefix in prefixes)
