"""Listening: the application on an address, as a child of a supervisor. Signals belong to whoever runs us."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Generator
from dataclasses import replace

import uvicorn
from starlette.applications import Starlette

from ..errors import ConfigError, NotPermitted
from .access import Access
from .closing import closing_of
from .protocol import Config, Limits

DEFAULT_LIMITS = Limits()


class WebServer:
    """Serves an application. `serve` is for a `ChildSpec`, with `ready`; it may be run again after its end.

    ``app`` is what it serves, ``port`` the one that it listens on. Started again, it listens on the same one.
    """

    def __init__(self, app: Starlette, access: Access, limits: Limits = DEFAULT_LIMITS) -> None:
        self.ready = asyncio.Event()
        self.port = access.port
        self.app = app
        self._access = access
        self._limits = limits
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        host = f"[{self._access.host}]" if ":" in self._access.host else self._access.host
        return f"http://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._server.server_state.connections) if self._server else 0

    async def serve(self) -> None:
        """Listen until cancelled; then end streams, and let requests end within ``drain_seconds``.

        Raises `ConfigError` if it cannot listen there.
        """
        closing = closing_of(self.app)
        closing.clear()
        with await _listening(self._access) as listening:
            self.port = listening.getsockname()[1]
            self._access = replace(self._access, port=self.port, or_any=False)  # it was told to people
            server = self._server = _Server(Config(self.app, self._limits), self.ready)
            running = asyncio.create_task(server.serve(sockets=[listening]), name="web/server")
            try:
                await asyncio.shield(running)
            finally:
                self.ready.clear()
                closing.set()
                await _ended(server, running)


class _Server(uvicorn.Server):
    """Without its signal handlers, and without looking ten times a second whether it is to stop."""

    def __init__(self, config: Config, ready: asyncio.Event) -> None:
        super().__init__(config)
        self.stop = asyncio.Event()
        self._ready = ready

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        self._ready.set()
        await self.stop.wait()


async def _ended(server: _Server, running: asyncio.Task[None]) -> None:
    """Stop in order; cut what does not end, also if somebody does not want to wait for it."""
    server.stop.set()
    try:
        await asyncio.wait([running])  # bounded by `drain_seconds`
    finally:
        running.cancel()
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        late = set(server.server_state.tasks)
        for task in late:
            task.cancel()
    if late:
        await asyncio.wait(late, timeout=1.0)
    if not running.cancelled() and (error := running.exception()) is not None:
        raise error


async def _listening(access: Access) -> socket.socket:
    """Return a socket that listens; of several addresses, to one of IPv4, as ``localhost`` means to most."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"cannot listen on {access.host}: {error}") from error
    family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    try:
        try:
            return _bound(socket.socket(family, kind, protocol), address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not access.or_any:
                raise
            return _bound(socket.socket(family, kind, protocol), (address[0], 0, *address[2:]))
    except OSError as error:
        kind_of = NotPermitted if isinstance(error, PermissionError) else ConfigError
        raise kind_of(
            f"cannot listen on {access.host}:{access.port}: {error.strerror}; "
            "name another port, or end the program that has it"
        ) from error


def _bound(listening: socket.socket, address: tuple[object, ...]) -> socket.socket:
    """Return the socket, listening: two may be bound to one address until one of them does. Closes it on an error."""
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind(address)
        listening.listen()
    except OSError:
        listening.close()
        raise
    return listening
