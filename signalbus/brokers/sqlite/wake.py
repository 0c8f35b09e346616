"""Waking the writer thread: by its own process through a doorbell, by others with datagrams.

A datagram says only "look again". It may get lost or be one too many, so nothing depends on it but latency.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

# Bytes of a socket's path: sun_path has 108 on Linux and 104 elsewhere, with the terminator.
_LONGEST = 107 if sys.platform == "linux" else 103
_DIRECTORY_PREFIX = "signalbus-"
_NAME = "wake.sock"


class Wake:
    """One waiting place with two bells."""

    def __init__(self) -> None:
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._hints: socket.socket | None = None
        self._outbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._outbox.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self.path = ""

    def listen(self, directory: Path, token: str) -> str:
        """Listen for datagrams of others; return the path of the socket, empty if there can be none."""
        path = directory / f"{token}.sock"
        hints = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        hints.setblocking(False)
        try:
            if len(os.fsencode(path)) > _LONGEST:
                path = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX)) / _NAME
            hints.bind(str(path))
        except OSError:
            hints.close()  # a file system without sockets: we look from time to time all the same
            remove_socket(str(path))
            return ""
        self._hints, self.path = hints, str(path)
        self._poll.register(hints, select.POLLIN)
        return self.path

    def ring(self) -> None:
        """Wake the waiting thread. Safe from any thread."""
        try:
            self._button.send(b"\0")
        except OSError:
            pass  # full of rings nobody heard yet, or closed as the thread has ended

    def wait(self, timeout: float | None) -> bool:
        """Wait for a ring, a hint or the timeout in seconds; tell whether there was a hint."""
        events = self._poll.poll(None if timeout is None else max(0, int(timeout * 1000 + 0.999)))
        hinted = False
        for fd, _ in events:
            if fd == self._bell.fileno():
                self._bell.recv(4096)  # more rings than that would only wake us once too often
            elif self._hints is not None:
                _drain(self._hints)
                hinted = True
        return hinted

    def hint(self, paths: Iterable[str]) -> None:
        """Send others a hint; who cannot be reached looks by itself sooner or later."""
        for path in filter(None, paths):
            try:
                self._outbox.sendto(b"\0", path)
            except OSError:
                pass  # dead, stopped or buried in hints already

    def close(self) -> None:
        """Remove the socket and close everything. Idempotent."""
        if self.path:
            remove_socket(self.path)
            self.path = ""
        self.forget()

    def forget(self) -> None:
        """Close our copies only: for a forked child."""
        for end in (self._bell, self._button, self._outbox, self._hints):
            if end is not None:
                end.close()


def remove_socket(path: str) -> None:
    """Remove the socket of a session that is over, with the directory made for it alone. Idempotent."""
    if not path:
        return
    socket_path = Path(path)
    socket_path.unlink(missing_ok=True)
    if socket_path.name == _NAME and socket_path.parent.name.startswith(_DIRECTORY_PREFIX):
        try:
            socket_path.parent.rmdir()
        except OSError:
            pass  # gone already, or not only ours


def _drain(end: socket.socket) -> None:
    try:
        while True:
            end.recv(16)
    except BlockingIOError:
        pass  # empty
