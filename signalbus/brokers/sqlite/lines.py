"""Connections between sessions: Unix stream sockets that carry frames, on the broker's event loop.

Owns sockets and their buffers; knows nothing of requests. What is written is bounded by whoever writes: see
`Line.paused` and `Line.drain`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from .forks import guard
from .frames import HELLO, Kind, Malformed, Splitter, frame
from .sockets import bind_again

_BACKLOG = 512  # connections that wait to be accepted
_BUFFER_BYTES = 1024 * 1024  # written and not yet taken by the other end: beyond that, writers wait
_HELLO_BYTES = 64
_ACCEPT_AGAIN_SECONDS = 1.0  # after an error: out of files, most likely
_CLOSE_SECONDS = 1.0  # for the other end to take what was written

Taker = Callable[["Line", int, bytes], None]
Closed = Callable[["Line"], None]


class Line(asyncio.Protocol):
    """One connection. ``take`` gets each frame and may raise `Malformed`, ``closed`` is called once at its end."""

    def __init__(self, end: socket.socket, take: Taker, closed: Closed, counters: Counter[str]) -> None:
        self._end = end  # kept to close it in a forked child, which must not touch the transport
        self._take = take
        self._closed = closed
        self._counters = counters
        self._transport: asyncio.Transport | None = None
        self._splitter = Splitter(_HELLO_BYTES)
        self._room = asyncio.Event()
        self._room.set()
        self._over = asyncio.Event()
        self._incoming = False
        self._greeted = False
        guard(self)

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._over.is_set() or (self._transport is not None and self._transport.is_closing())

    @property
    def paused(self) -> bool:
        """Whether the other end takes nothing at present; so until it has said who it is."""
        return not self._room.is_set()

    async def call(self) -> None:
        """Begin, as the one who connected. Until the other end has greeted, nobody there has seen anything of us."""
        self._room.clear()
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._end)

    async def answer(self) -> None:
        """Begin, as the one who was connected to. While the other end takes no answers, nothing of it is read."""
        self._incoming = True
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self, self._end)

    def write(self, content: bytes) -> None:
        """Write a frame; nothing if the line has ended."""
        if self._transport is not None and not self.is_closed:
            self._transport.write(content)

    async def drain(self, deadline: float) -> bool:
        """Wait until there is room; False if there is none before ``deadline`` of the event loop, or no line."""
        try:
            async with asyncio.timeout_at(deadline):
                while self.paused and not self.is_closed:
                    await self._room.wait()
        except TimeoutError:
            return False
        return not self.is_closed

    def close(self) -> None:
        """End it, once what was written is taken; see `close_all`."""
        if self._transport is not None:
            self._transport.close()

    async def wait_closed(self, timeout: float) -> None:
        """Wait for the end; enforce it after ``timeout`` seconds."""
        if self._transport is None:
            return  # it never began
        try:
            async with asyncio.timeout(timeout):
                await self._over.wait()
        except TimeoutError:
            self._transport.abort()
            await self._over.wait()  # the next turn of the event loop

    def forget(self) -> None:
        """Close our copy only: for a forked child, or without an event loop."""
        self._end.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        transport.write(frame(Kind.HELLO, HELLO))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            for kind, content in self._splitter.feed(data):
                if self._greeted:
                    self._take(self, kind, content)
                else:
                    self._greet(kind, content)
        except Malformed:
            # Only this connection: whoever it was, the others are fine.
            self._counters["frames_malformed"] += 1
            if self._transport is not None:
                self._transport.abort()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._room.clear()
        if self._incoming and self._transport is not None and not self.is_closed:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._room.set()
        if self._incoming and self._transport is not None and not self.is_closed:
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`. Whatever the reason, it is over."""
        _ = exc
        self._over.set()
        self._room.set()
        self._closed(self)

    def _greet(self, kind: int, content: bytes) -> None:
        if kind != Kind.HELLO or content != HELLO:
            raise Malformed("not one of us")
        self._greeted = True
        self._room.set()
        self._splitter.limit = Splitter().limit


class Listener:
    """Accepts connections at a path. ``take`` and ``closed`` are those of their lines."""

    def __init__(self, end: socket.socket, path: str, take: Taker, closed: Closed, counters: Counter[str]) -> None:
        self._end = end
        self._path = path
        self._take = take
        self._closed = closed
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._again: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._open = True
        self._lines: set[Line] = set()
        guard(self)
        self._listen()

    def restore(self) -> None:
        """Listen at the same path again, as somebody removed it."""
        if not self._open or Path(self._path).exists():
            return
        end = bind_again(socket.SOCK_STREAM, self._path)
        if end is not None:
            self._stop()
            self._end = end
            self._listen()

    async def aclose(self) -> None:
        """Accept nothing more, and end what was accepted."""
        self._open = False
        self._stop()
        if self._starting:
            await asyncio.wait(self._starting)
        await close_all(self._lines)

    def forget(self) -> None:
        """Close our copies only: for a forked child, or without an event loop."""
        self._end.close()
        for line in self._lines:
            line.forget()

    def _listen(self) -> None:
        self._end.listen(_BACKLOG)
        self._loop.add_reader(self._end, self._accept)

    def _stop(self) -> None:
        if self._again is not None:
            self._again.cancel()
        if self._end.fileno() >= 0:
            self._loop.remove_reader(self._end)
            self._end.close()

    def _accept(self) -> None:
        for _ in range(_BACKLOG):
            try:
                end = self._accept_one()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                # Without a pause the event loop would do nothing else, as the connection still waits.
                self._loop.remove_reader(self._end)
                self._again = self._loop.call_later(_ACCEPT_AGAIN_SECONDS, self._listen)
                return
            task = self._loop.create_task(self._start(end))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    def _accept_one(self) -> socket.socket:
        end, _ = self._end.accept()
        end.setblocking(False)
        return end

    async def _start(self, end: socket.socket) -> None:
        line = Line(end, self._take, self._forget, self._counters)
        self._lines.add(line)
        try:
            await line.answer()
        except OSError:
            self._lines.discard(line)  # it has gone already
            end.close()

    def _forget(self, line: Line) -> None:
        self._lines.discard(line)
        self._closed(line)


async def close_all(lines: Iterable[Line]) -> None:
    """End lines, within about a second."""
    ending = list(lines)
    for line in ending:
        line.close()
    deadline = asyncio.get_running_loop().time() + _CLOSE_SECONDS
    for line in ending:
        await line.wait_closed(max(0.0, deadline - asyncio.get_running_loop().time()))
