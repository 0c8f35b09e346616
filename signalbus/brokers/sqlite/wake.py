"""Waking the writer thread: by its own process through a doorbell, by others with datagrams, by the end of processes.

A datagram says only "look again". It may get lost or be one too many, so nothing depends on it but latency.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Iterable
from pathlib import Path

from .sockets import bind, bind_again, remove_socket


class Wake:
    """One waiting place with two bells, and descriptors that become readable when a process ends."""

    def __init__(self) -> None:
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._hints: socket.socket | None = None
        self._processes: set[int] = set()
        self._outbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._outbox.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        self.path = ""

    def listen(self, directory: Path, token: str) -> str:
        """Listen for datagrams of others; return the path of the socket, empty if there can be none."""
        bound = bind(socket.SOCK_DGRAM, directory / f"{token}.sock")
        if bound is None:
            return ""  # we look from time to time all the same
        self._hints, self.path = bound
        self._poll.register(self._hints, select.POLLIN)
        return self.path

    def restore(self) -> None:
        """Listen at the same path again if somebody removed it."""
        if not self.path or Path(self.path).exists():
            return
        hints = bind_again(socket.SOCK_DGRAM, self.path)
        if hints is None or self._hints is None:
            return
        self._poll.unregister(self._hints)
        self._hints.close()
        self._hints = hints
        self._poll.register(hints, select.POLLIN)

    def watch(self, process: int) -> None:
        """Wake also when this descriptor of a process tells its end; it stays its owner's."""
        self._processes.add(process)
        self._poll.register(process, select.POLLIN)

    def unwatch(self, process: int) -> None:
        """Stop watching a process; before its descriptor is closed."""
        self._processes.discard(process)
        self._poll.unregister(process)

    def ring(self) -> None:
        """Wake the waiting thread. Safe from any thread."""
        try:
            self._button.send(b"\0")
        except OSError:
            pass  # full of rings nobody heard yet, or closed as the thread has ended

    def wait(self, timeout: float | None, ended: list[int] | None = None) -> bool:
        """Wait for a ring, a hint, the end of a process or the timeout in seconds; tell whether there was a hint.

        Descriptors of processes that have ended are added to ``ended``; they keep waking until `unwatch`.
        """
        events = self._poll.poll(None if timeout is None else max(0, int(timeout * 1000 + 0.999)))
        hinted = False
        for fd, _ in events:
            if fd == self._bell.fileno():
                self._bell.recv(4096)  # more rings than that would only wake us once too often
            elif fd in self._processes:
                if ended is not None:
                    ended.append(fd)
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


def _drain(end: socket.socket) -> None:
    try:
        while True:
            end.recv(16)
    except BlockingIOError:
        pass  # empty
