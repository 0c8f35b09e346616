"""A TCP proxy on the loopback interface that makes the network between a client and its broker fail on demand.

It knows bytes, not protocols. Every fault lasts until `heal`; what it does to connections that are open then is said
at each control. Waiting is on events; each direction of a connection buffers at most `BUFFER_BYTES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from signalbus.testing.ports import free_port

__all__ = ["Direction", "FaultProxy", "Side"]

Direction = Literal["up", "down", "both"]
"""`up` is from the client to the broker, `down` from the broker to the client."""

Side = Literal["client", "broker"]

HOST = "127.0.0.1"
CHUNK_BYTES = 16 * 1024
CHUNKS = 64
BUFFER_BYTES = CHUNKS * CHUNK_BYTES
# Throttled data leaves in pieces of this many seconds, so that a change of rate is felt soon.
SLICE_SECONDS = 0.05

_PORTS = {"amqp": 5672, "amqps": 5671, "http": 80, "https": 443}


@dataclass(slots=True)
class _Flow:
    """The faults of one direction."""

    blocked: bool = False
    dropping: bool = False
    delay: float = 0.0
    jitter: float = 0.0
    rate: float | None = None
    next_free: float = 0.0  # when the throttled line, shared by all connections, has sent what it was given
    budget: tuple[int, int] | None = None


class _Link:
    """One client connection and the broker connection made for it."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.sides: dict[Side, asyncio.StreamWriter] = {"client": client, "broker": broker}
        self.budgets: dict[str, int | None] = {"up": None, "down": None}
        # The stream has a hole: it must not go on after `heal`.
        self.torn = False
        # Both sides were sent a FIN: what they still send has nowhere to go.
        self.finished = False
        # Reset by `half_open`: the other side is to stay open, silent.
        self.dead_side: Side | None = None
        self._dead = asyncio.Event()

    def reset(self) -> None:
        """Reset both sides and end the link, whatever its directions wait for."""
        for writer in self.sides.values():
            _reset(writer)
        self._dead.set()

    async def end_with_reset(self) -> None:
        await self._dead.wait()
        raise _LinkEnded


class _LinkEnded(Exception):
    """Ends a link's task group."""


class FaultProxy:
    """Forward TCP connections to `target` and misbehave when told to.

    `target` is a URL or (host, port). Random choices (jitter, where a cut falls) come from `seed`.
    """

    def __init__(self, target: str | tuple[str, int], *, seed: int = 0) -> None:
        self._target = _address(target)
        self._random = random.Random(seed)
        self._flows: dict[str, _Flow] = {"up": _Flow(), "down": _Flow()}
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self.port = free_port(HOST)
        self.connections_total = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.cuts = 0

    # What tests ask

    @property
    def connections(self) -> int:
        """How many connections are open through the proxy, silent ones included."""
        return len(self._links)

    def url_for(self, url: str) -> str:
        """Return `url` with the proxy's address in place of the broker's."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return parts._replace(netloc=f"{credentials}{at}{HOST}:{self.port}").geturl()

    async def wait_connections(self, count: int, *, timeout: float = 10.0) -> None:
        """Wait until exactly `count` connections are open; TimeoutError after `timeout` seconds."""
        await self._wait(lambda: len(self._links) == count, timeout)

    async def wait_connections_total(self, count: int, *, timeout: float = 10.0) -> None:
        """Wait until at least `count` connections were made since the start; TimeoutError after `timeout`."""
        await self._wait(lambda: self.connections_total >= count, timeout)

    # Faults

    def cut(self) -> None:
        """Reset (RST) every open connection on both sides. New ones work."""
        for link in tuple(self._links):
            self.cuts += 1
            link.reset()

    def finish(self) -> None:
        """Send FIN on both sides of every open connection. New ones work."""
        for link in tuple(self._links):
            link.finished = True
            for writer in link.sides.values():
                if not writer.is_closing():
                    writer.write_eof()

    def black_hole(self, direction: Direction = "both") -> None:
        """Let nothing through, on open connections and new ones.

        As with a network that comes back, what was sent meanwhile arrives after `heal`.
        """
        for flow in self._select(direction):
            flow.blocked = True
        self._notify()

    def half_open(self, dead: Side = "client") -> None:
        """Reset one side of every open connection and keep the other open and silent until `heal`. New ones work."""
        for link in tuple(self._links):
            link.dead_side = dead
            _reset(link.sides[dead])

    def drop_downstream(self) -> None:
        """Swallow what the broker sends; the client's bytes still arrive, so their acks are lost.

        `heal` resets the connections that lost bytes.
        """
        self._flows["down"].dropping = True

    def delay(self, seconds: float, jitter: float = 0.0, *, direction: Direction = "both") -> None:
        """Hold bytes back for `seconds` ± `jitter` in each direction. Order is kept."""
        for flow in self._select(direction):
            flow.delay, flow.jitter = seconds, jitter

    def throttle(self, bytes_per_second: float, *, direction: Direction = "both") -> None:
        """Limit the rate of each direction, for all connections together."""
        if bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be positive: black_hole() lets nothing through")
        for flow in self._select(direction):
            flow.rate, flow.next_free = bytes_per_second, 0.0
        self._notify()

    def cut_after(self, low: int, high: int | None = None, *, direction: Direction = "both") -> None:
        """Reset each connection, open or new, when a number of further bytes went through.

        The number is `low`, or drawn between `low` and `high` for each connection and direction: in general
        the cut falls inside a frame.
        """
        for name, flow in self._flows.items():
            if direction in (name, "both"):
                flow.budget = (low, low if high is None else high)
                for link in self._links:
                    link.budgets[name] = self._draw(flow)

    async def refuse(self) -> None:
        """Stop listening: new connections are refused. Open ones go on."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def accept(self) -> None:
        """Listen again, on the same port. Does nothing while the proxy listens."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._connected, HOST, self.port, limit=CHUNK_BYTES, reuse_address=True
            )

    async def heal(self) -> None:
        """End every fault and listen. Connections that lost bytes or a side are reset; others go on."""
        self._flows = {"up": _Flow(), "down": _Flow()}
        for link in tuple(self._links):
            link.budgets = {"up": None, "down": None}
            if link.torn or link.finished or link.dead_side:
                link.reset()
        self._notify()
        await self.accept()

    # Life

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Reset what is open and stop. Idempotent."""
        await self.refuse()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not a coroutine: asyncio would own the task, and closing the proxy could not wait for it.
        task = asyncio.create_task(self._serve(reader, writer), name="fault-proxy-link")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections_total += 1
        self._notify()
        try:
            broker_reader, broker = await asyncio.open_connection(*self._target, limit=CHUNK_BYTES)
        except OSError:
            # The client sees what a broker that went away looks like.
            _reset(client)
            return
        except asyncio.CancelledError:
            _reset(client)
            raise
        link = _Link(client, broker)
        link.budgets = {name: self._draw(flow) for name, flow in self._flows.items()}
        self._links.add(link)
        self._notify()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(link.end_with_reset())
                async with asyncio.TaskGroup() as carriers:
                    carriers.create_task(self._carry(link, "up", client_reader, broker))
                    carriers.create_task(self._carry(link, "down", broker_reader, client))
                link.reset()
        except* _LinkEnded:
            pass
        finally:
            link.reset()
            self._links.discard(link)
            self._notify()

    async def _carry(self, link: _Link, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Move one direction's bytes until it ends. Reading and writing are apart, so that delays overlap."""
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read(link, name, reader, chunks))
            group.create_task(self._write(link, name, chunks, writer))

    async def _read(
        self, link: _Link, name: str, reader: asyncio.StreamReader, chunks: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        loop = asyncio.get_running_loop()
        side: Side = "client" if name == "up" else "broker"
        while True:
            try:
                data = await reader.read(CHUNK_BYTES)
            except OSError:
                if link.dead_side is None:
                    # A reset is passed on as one. It cannot cross a black hole either.
                    await self._until(lambda: not self._flows[name].blocked)
                    link.reset()
                data = b""
            if not data and link.dead_side is not None:
                if side != link.dead_side:
                    link.reset()  # the side that stayed open has given up
                return
            flow = self._flows[name]
            if data and flow.dropping:
                link.torn = True
            elif not data or not link.finished:
                due = loop.time() + max(0.0, flow.delay + self._random.uniform(-flow.jitter, flow.jitter))
                await chunks.put((due, data))
            if not data:
                return

    async def _write(
        self, link: _Link, name: str, chunks: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, data = await chunks.get()
            await self._until(lambda: not self._flows[name].blocked)
            await self._pause(name, due)
            if not data:
                with contextlib.suppress(OSError):  # reset before its end could be passed on
                    if not writer.is_closing():
                        writer.write_eof()
                return
            for piece in self._pieces(name, data):
                await self._line(name, len(piece))
                await self._until(lambda: not self._flows[name].blocked)
                try:
                    await self._forward(link, name, piece, writer)
                except OSError:
                    # The target is gone: the other direction's _read learns it too and passes it on.
                    # Go on taking chunks, or this direction's _read would wait for ever.
                    break

    async def _forward(self, link: _Link, name: str, piece: bytes, writer: asyncio.StreamWriter) -> None:
        if writer.is_closing() or link.finished:
            return
        budget = link.budgets[name]
        if budget is not None:
            piece = piece[:budget]
            link.budgets[name] = budget = budget - len(piece)
        writer.write(piece)
        if name == "up":
            self.bytes_up += len(piece)
        else:
            self.bytes_down += len(piece)
        await writer.drain()
        if budget == 0:
            self.cuts += 1
            link.reset()

    def _pieces(self, name: str, data: bytes) -> list[bytes]:
        rate = self._flows[name].rate
        size = len(data) if rate is None else max(1, int(rate * SLICE_SECONDS))
        return [data[start : start + size] for start in range(0, len(data), size)]

    async def _line(self, name: str, size: int) -> None:
        """Wait for our turn on a throttled line."""
        flow = self._flows[name]
        if flow.rate is None:
            return
        start = max(asyncio.get_running_loop().time(), flow.next_free)
        flow.next_free = start + size / flow.rate
        await self._pause(name, flow.next_free)

    async def _pause(self, name: str, due: float) -> None:
        """Wait until `due` or until `heal`."""
        flow = self._flows[name]
        remaining = due - asyncio.get_running_loop().time()
        if remaining > 0:
            try:
                await self._wait(lambda: self._flows[name] is not flow, remaining)
            except TimeoutError:
                pass  # the usual end: it is due

    def _draw(self, flow: _Flow) -> int | None:
        return None if flow.budget is None else self._random.randint(*flow.budget)

    def _select(self, direction: Direction) -> list[_Flow]:
        return [flow for name, flow in self._flows.items() if direction in (name, "both")]

    def _notify(self) -> None:
        # Those who wait hold the old event; later ones wait for the next change.
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    async def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            await self._until(condition)


def _address(target: str | tuple[str, int]) -> tuple[str, int]:
    if not isinstance(target, str):
        return target
    parts = urlsplit(target)
    port = parts.port or _PORTS.get(parts.scheme)
    if parts.hostname is None or port is None:
        raise ValueError("the target needs a host and a port")
    return parts.hostname, port


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST: lingering is on, with no time."""
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
