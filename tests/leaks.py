"""What a test left behind in its process: file descriptors and threads."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# Threads and descriptors may be closed by another thread or process just after the test's last line.
GRACE_SECONDS = 2.0
_DIRECTORY = "/proc/self/fd"


def open_descriptors() -> frozenset[tuple[int, str]]:
    """Return number and target of each open file descriptor; nothing where the system does not tell."""
    found: set[tuple[int, str]] = set()
    try:
        names = os.listdir(_DIRECTORY)  # noqa: PTH208
    except OSError:
        return frozenset()
    for name in names:
        try:
            found.add((int(name), os.readlink(f"{_DIRECTORY}/{name}")))  # noqa: PTH115
        except OSError:
            continue  # the one that listed the directory
    return frozenset(found)


@dataclass(slots=True)
class LeakCheck:
    """Remembers what was open, and what the test session itself opened since."""

    descriptors: set[tuple[int, str]] = field(default_factory=set)
    threads: set[threading.Thread] = field(default_factory=set)

    def start(self) -> None:
        """Take everything open now as the base."""
        self.descriptors = set(open_descriptors())
        self.threads = set(threading.enumerate())

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Take what is opened within (by brokers that outlive the test) as part of the base."""
        descriptors, threads = open_descriptors(), set(threading.enumerate())
        try:
            yield
        finally:
            self.descriptors |= open_descriptors() - descriptors
            self.threads |= set(threading.enumerate()) - threads

    def leaked(self) -> list[str]:
        """Name what is open and was not, after giving it a moment to close."""
        found = self._found()
        if not found:
            return []
        gc.collect()  # cycles hold sockets; a ResourceWarning is the message for those
        deadline = time.monotonic() + GRACE_SECONDS
        while (found := self._found()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return found

    def _found(self) -> list[str]:
        threads = [f"thread {thread.name}" for thread in threading.enumerate() if thread not in self.threads]
        files = [f"descriptor {number} {target}" for number, target in open_descriptors() - self.descriptors]
        return sorted(threads) + sorted(files)
