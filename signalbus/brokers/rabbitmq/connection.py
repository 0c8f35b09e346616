"""One connection to RabbitMQ, kept alive: connect, prepare, serve, and again after each loss.

The state machine is our own, on the driver's plain connection: its robust one neither notices a consumer that was not
restored nor bounds its calls. A broker is reached over several links, since one that is blocked or fails must not
take the others along.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import aio_pika
from aiormq.abc import AbstractConnection
from aiormq.connection import TCPTransportFactory, TLSTransportFactory
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type
from tenacity.wait import wait_random_exponential
from yarl import URL

from ...config import RabbitUrl
from ...errors import BrokerUnavailable
from .driver import ACCESS_REFUSED, NOT_ALLOWED, DriverFailure, call, close_quietly, on_closed
from .lane import LaneReader, attach, open_lane

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0  # for TCP, TLS and the handshake with one server
PREPARE_SECONDS = 20.0
FIRST_PAUSE = 0.25
STABLE_SECONDS = 5.0  # a connection that lived as long starts the backoff anew
CLOSE_SECONDS = 2.5

_NO_RETRYING = AsyncRetrying()

Prepare = Callable[[AbstractConnection], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a link is not up: at which server, what, and whether only an operator can change it."""

    server: str
    reason: str
    refused: bool

    def __str__(self) -> str:
        return f"{self.server}: {self.reason}"


class _Transports:
    """Makes the sockets of one connection and remembers them, so that they can be dropped without their consent."""

    def __init__(self, *, tls: bool, lane: bool) -> None:
        self.lane: LaneReader | None = None
        self._tls = tls
        self._wants_lane = lane
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._wants_lane:
            context = await kwargs["ssl_context_provider"].get_context() if self._tls else None
            self.lane, self._writer = await open_lane(url, context)
            return self.lane, self._writer
        factory = TLSTransportFactory() if self._tls else TCPTransportFactory()
        reader, self._writer = await factory.create(url, **kwargs)
        return reader, self._writer

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()


class Backoff:
    """Exponential pauses with full jitter, counted from the last thing that lasted: a crowd spreads out."""

    def __init__(self, first: float, cap: float) -> None:
        self._wait = wait_random_exponential(multiplier=first, max=cap)
        self._failures = 0
        self._since: float | None = None

    def began(self, now: float) -> None:
        """It works since ``now``."""
        self._since = now

    def ended(self, now: float) -> float:
        """It works no more; return how many seconds it did."""
        lasted = now - self._since if self._since is not None else 0.0
        self._since = None
        if lasted >= STABLE_SECONDS:
            self._failures = 0
        return lasted

    def next(self) -> float:
        """Return the seconds to wait before the next try."""
        self._failures = min(self._failures + 1, 30)
        state = RetryCallState(retry_object=_NO_RETRYING, fn=None, args=(), kwargs={})
        state.attempt_number = self._failures
        return self._wait(state)


class Link:
    """One supervised connection. ``run`` keeps it; everything else may be called at any time."""

    def __init__(
        self, url: RabbitUrl, role: str, counters: Counter[str], changed: Callable[[], None], prepare: Prepare
    ) -> None:
        self.role = role
        self.name = "signalbus"
        self.problem: Trouble | None = None
        self._url = url
        self._counters = counters
        self._changed = changed
        self._prepare = prepare
        self._turn = 0
        self._connection: AbstractConnection | None = None
        self._transports: _Transports | None = None
        self._up = asyncio.Event()
        self._ssl: ssl.SSLContext | None = None
        self._backoff = Backoff(FIRST_PAUSE, url.backoff_cap)

    @property
    def server(self) -> str:
        """Host and port of the server in use, or tried last."""
        return _host(self._url.servers[(self._turn - 1) % len(self._url.servers)])

    @property
    def connection(self) -> AbstractConnection | None:
        """The driver's connection while the link is up."""
        return self._connection

    @property
    def blocked(self) -> bool:
        """Whether the broker has told this connection to publish nothing for now."""
        connection = self._connection
        if connection is None or self._transports is None:
            return False
        if self._transports.lane is not None:
            return self._transports.lane.blocked
        # The driver keeps its flag to itself, and offers only to wait for it: one step of that wait tells.
        waiting = connection.ready()
        try:
            waiting.send(None)
        except StopIteration:
            return False
        finally:
            waiting.close()
        return True

    def trouble(self, otherwise: str) -> str:
        """Say why the link is not up, for an error message."""
        if self.problem is None:
            return f"RabbitMQ at {self.server}: {otherwise}"
        return f"RabbitMQ cannot be reached at {self.problem}"

    async def wait_up(self, deadline: float) -> AbstractConnection:
        """Return the connection once it is up. Raises `BrokerUnavailable` at the deadline (of the loop's clock)."""
        while (connection := self._connection) is None:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._up.wait()
            except TimeoutError as error:
                raise BrokerUnavailable(self.trouble("not connected yet")) from error
        return connection

    def suspect(self, connection: AbstractConnection, failure: DriverFailure) -> None:
        """Drop a connection that does not answer, unless it has been replaced already."""
        if connection is self._connection and self._transports is not None and failure.code is None:
            log.warning("%s: dropping the connection to %s: %s", self.role, self.server, failure.reason)
            self._transports.abort()

    async def run(self) -> None:
        """Connect and stay connected until cancelled."""
        retrying = AsyncRetrying(retry=retry_if_exception_type(DriverFailure), wait=self._pause)
        async for attempt in retrying:
            with attempt:
                await self._live()

    def _pause(self, state: RetryCallState) -> float:
        pause = self._backoff.next()
        if self.problem is not None and self.problem.refused:
            pause = max(pause, self._url.backoff_cap / 2)  # only an operator can change it
        return pause

    async def _live(self) -> None:
        """One life of the connection. Always ends in `DriverFailure`, or cancelled."""
        server = self._url.servers[self._turn % len(self._url.servers)]
        self._turn += 1
        try:
            await self._serve(server)
        except DriverFailure as failure:
            lasted = self._backoff.ended(asyncio.get_running_loop().time())
            self._counters["connections_lost" if lasted else "connects_failed"] += 1
            self.problem = Trouble(_host(server), failure.reason, failure.code in (ACCESS_REFUSED, NOT_ALLOWED))
            log.warning("%s connection to %s", self.role, self.problem)
            self._changed()
            raise

    async def _serve(self, server: str) -> None:
        """Connect, prepare and wait for the loss. Always ends in `DriverFailure`, or cancelled."""
        transports = _Transports(tls=server.startswith("amqps"), lane=self._url.lane == "on")
        options = f"heartbeat={self._url.heartbeat}&name={quote(f'{self.name} {self.role}')}"
        connection = aio_pika.Connection(URL(f"{server}?{options}"), ssl_context=await self._context(server))
        connection.kwargs["transport_factory"] = transports
        lost: asyncio.Future[DriverFailure] = asyncio.get_running_loop().create_future()

        def on_lost(failure: DriverFailure) -> None:
            if not lost.done():
                lost.set_result(failure)

        try:
            await call(connection.connect(), CONNECT_SECONDS)
            assert connection.transport is not None
            driver = connection.transport.connection
            on_closed(driver, on_lost)
            if transports.lane is not None:
                attach(driver, transports.lane)
            await self._prepared(driver)
            if not lost.done():
                self._connection, self._transports, self.problem = driver, transports, None
                self._backoff.began(asyncio.get_running_loop().time())
                self._counters["connects"] += 1
                self._up.set()
                self._changed()
            raise await lost
        finally:
            self._connection = None
            self._up.clear()
            # A stopped broker answers no close; the socket must not outlive us.
            await close_quietly(connection.close(), CLOSE_SECONDS)
            transports.abort()

    async def _prepared(self, driver: AbstractConnection) -> None:
        try:
            async with asyncio.timeout(PREPARE_SECONDS):
                await self._prepare(driver)
        except TimeoutError as error:
            raise DriverFailure(f"not prepared within {PREPARE_SECONDS:.0f} s") from error

    async def _context(self, server: str) -> ssl.SSLContext | None:
        if not server.startswith("amqps"):
            return None
        if self._ssl is None:
            ca = str(self._url.ca) if self._url.ca is not None else None
            try:
                # Verifies certificate and host name. Reads files, so not in the event loop.
                self._ssl = await asyncio.to_thread(ssl.create_default_context, cafile=ca)
            except OSError as error:
                raise DriverFailure(f"TLS: the authorities in {ca} cannot be read: {error}", ACCESS_REFUSED) from error
        return self._ssl


def _host(server: str) -> str:
    parts = urlsplit(server)
    return f"{parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"
