"""The embedded broker: the seam's methods, each handed to the part that does it."""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Callable, Sequence

from ...codec import EncodedSignal
from ...config import SqliteUrl
from ...deadletters.file import LetterFile
from ...deadletters.model import DeadLetters
from ...errors import BrokerError, BrokerUnavailable, BusClosed, ConfigError
from ...ledger import Batch
from ...patterns import parse
from ...sessions import Down, DownReason, SessionInfo
from ...trace.listing import Retention
from ...trace.reader import TraceReader
from ...trace.store import SqliteStore
from ..base import (
    Answer,
    BrokerHealth,
    BrokerState,
    Host,
    PublishOutcome,
    QueueInfo,
    SessionStatus,
    StoredDeadLetter,
    SubscriptionSpec,
)
from . import looks
from .audience import Audience
from .clock import Clock
from .consumer import SqliteConsumer
from .database import Database
from .desk import Desk
from .errands import Errands
from .exchange import Exchange
from .facts import Facts
from .files import Files
from .forks import guard
from .letters import SqliteLetters
from .operations import Declare, Delete, Look, Serve, Watch, WatchAll
from .records import moment, pack
from .responder import SqliteResponder
from .watches import Watches
from .writer import Clerk, Writer

_CLOSE_SECONDS = 5.0


class SqliteBroker:
    """See `Broker`. One file, one writer thread, any number of processes on one machine."""

    def __init__(self, url: SqliteUrl, *, clock: Clock | None = None) -> None:
        self._url = url
        self._clock = clock or Clock()
        self._files = Files(url.path)
        self._state = BrokerState.CLOSED
        self._writer: Writer | None = None
        self._errands: Errands | None = None
        self._exchange: Exchange | None = None
        self._watches: Watches | None = None
        self._facts: Facts | None = None
        self._desk: Desk | None = None
        self._database: Database | None = None
        self._audience: Audience | None = None
        self._host: Host | None = None
        self._letters: set[SqliteLetters] = set()
        self._ending: asyncio.Task[None] | None = None

    # Opening and closing

    async def open(self, session: SessionInfo, timeout: float, host: Host | None = None) -> None:
        """See `Broker.open`."""
        if self._writer is not None:
            raise BusClosed("a broker is opened once; make another one")
        self._state = BrokerState.CONNECTING
        self._host = host
        self._desk = Desk(self._files, self._clock, session)
        self._audience = Audience(self._desk)
        self._database = Database(self._url, self._files)
        self._errands = Errands(self._url.busy_timeout, self._desk.counters)
        self._facts = Facts(self._errands.submit, self._desk.counters)
        self._writer = self._start(self._desk, self._database, self._errands)
        try:
            async with asyncio.timeout(min(timeout, self._url.busy_timeout)):
                await self._writer.opened
            self._state = BrokerState.UP
            self._errands.open = True
            end, self._writer.calls = self._writer.calls, None
            self._exchange = Exchange(self._errands, self._desk, host, end)
        except TimeoutError as error:
            await self._close(0.0)  # the thread waits for a lock; it ends once it has it
            raise BrokerUnavailable(
                f"{self._files.path} could not be opened in time: another process holds its lock; find it with 'fuser'"
            ) from error
        except BaseException:
            await self.aclose()
            raise

    def _start(self, desk: Desk, database: Database, errands: Errands) -> Writer:
        clerk = Clerk(
            report=errands.report,
            ended=self._ended,
            renewed=self._renewed,
            unreachable=self._unreachable,
            orphaned=self._orphaned,
        )
        loop, network = asyncio.get_running_loop(), self._url.network_filesystem
        retention = Retention(seconds=self._url.ledger_days * 86_400, bytes=self._url.ledger_bytes)
        writer = Writer(desk, database, loop, network_filesystem=network, retention=retention, clerk=clerk)
        self._watches = Watches(writer.ring)
        self._watches.ours.add(desk.info.id)
        writer.watcher.wanted = self._watches
        errands.writer = writer
        guard(writer)
        writer.start()
        return writer

    async def aclose(self, reason: DownReason = DownReason.NORMAL) -> None:
        """See `Broker.aclose`. Bounded by about seven seconds."""
        if self._desk is not None and self._ending is None:
            self._desk.reason = reason
            await asyncio.gather(*(letters.aclose() for letters in self._letters))
        await self._close(_CLOSE_SECONDS)

    async def _close(self, patience: float) -> None:
        self._state = BrokerState.CLOSED
        if self._errands is None:
            return
        self._errands.closed = True
        if not self._errands.is_ours:
            return
        if self._ending is None:
            self._errands.stop()
            self._ending = asyncio.ensure_future(self._end(self._errands, patience))
        await asyncio.shield(self._ending)

    async def _end(self, errands: Errands, patience: float) -> None:
        if self._watches is not None:
            self._watches.close()
        try:
            if self._exchange is not None:
                await self._exchange.aclose()
        finally:
            await errands.end(patience)
        if self._exchange is not None:
            await self._exchange.wait_idle()

    # Subscriptions

    async def declare(self, subscription: SubscriptionSpec, timeout: float) -> None:
        """See `Broker.declare`."""
        for pattern in subscription.patterns:
            parse(pattern)
        errands = self._opened()
        await errands.ask(Declare(errands.future(), time.monotonic() + timeout, subscription))

    async def delete(self, name: str, timeout: float) -> None:
        """See `Broker.delete`."""
        errands = self._opened()
        await errands.ask(Delete(errands.future(), time.monotonic() + timeout, name))

    async def consume(self, name: str, prefetch: int, timeout: float) -> SqliteConsumer:
        """See `Broker.consume`. Raises `ConfigError` if the subscription does not exist or is not ours to serve."""
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        errands = self._opened()
        consumer = SqliteConsumer(errands, name, prefetch)
        serve = Serve(errands.future(), time.monotonic() + timeout, consumer.claimant)
        try:
            await errands.ask(serve)
        except (BrokerError, asyncio.CancelledError):
            # It may be served all the same, a moment later: then nobody would ever settle what it gets.
            errands.later(consumer.aclose())
            raise
        errands.consumers.add(consumer)
        return consumer

    # Signals

    async def publish(self, batch: Sequence[EncodedSignal], timeout: float) -> Sequence[PublishOutcome]:
        """See `Broker.publish`. Also raises `StorageError`, if it is certain that nothing was stored."""
        outbox = self._opened().outbox
        return await outbox.publish([pack(signal) for signal in batch], time.monotonic() + timeout)

    async def audience(self, signal_type: str, timeout: float) -> Sequence[str]:
        """See `Broker.audience`."""
        errands = self._opened()
        assert self._audience is not None
        names = functools.partial(self._audience.names, signal_type=signal_type)
        return await errands.ask(Look(errands.future(), time.monotonic() + timeout, names))

    # Requests

    async def request(self, request: EncodedSignal, timeout: float) -> Answer:
        """See `Broker.request`. Raises `InvalidSignal` if it is larger than requests may be."""
        return await self._connected().request(request, timeout)

    async def respond(self, request_type: str, concurrency: int, backlog: int, timeout: float) -> SqliteResponder:
        """See `Broker.respond`. Each responder has a backlog of its own."""
        return await self._connected().respond(request_type, concurrency, backlog, timeout)

    # Sessions

    async def watch(self, session: str, timeout: float) -> asyncio.Future[Down]:
        """See `Broker.watch`. A stopped (SIGSTOP) session is alive here: its process holds its lock."""
        errands = self._opened()
        assert self._watches is not None
        future = self._watches.add(session)
        try:
            found = await errands.ask(Watch(errands.future(), time.monotonic() + timeout, session))
        except BaseException:
            future.cancel()
            raise
        if not found and not future.done():
            future.set_result(Down(session=session, reason=DownReason.NOPROC, at=moment(self._clock.wall())))
        return future

    async def watch_all(self, ended: Callable[[Down], None], timeout: float) -> None:
        """See `Broker.watch_all`."""
        errands = self._opened()
        assert self._watches is not None
        begin = functools.partial(self._watches.add_everyone, ended)
        await errands.ask(WatchAll(errands.future(), time.monotonic() + timeout, begin))

    async def sessions(self, timeout: float) -> Sequence[SessionStatus]:
        """See `Broker.sessions`. Each has a quarter of a second to answer."""
        return await self._connected().sessions(timeout)

    async def send(self, session: str, message: bytes) -> None:
        """See `Broker.send`. Waits up to five seconds for a session that takes nothing."""
        await self._connected().send(session, message)

    # The ledger

    def append(self, batches: Sequence[Batch]) -> None:
        """See `Broker.append`. They go into the file, in the next transaction, and are filed when there is time."""
        if self._facts is not None and self._errands is not None and self._errands.open and self._errands.is_ours:
            self._facts.append(batches)

    async def traces(self, timeout: float) -> TraceReader:
        """Return the traces of this file, to be read and closed; what was recorded meanwhile is filed before answers.

        ``timeout``: seconds for that, each time. Raises `StorageError` or `BrokerUnavailable`.
        """
        self._opened()
        store = await asyncio.to_thread(SqliteStore, self._files.path, read_only=True)
        return TraceReader(store, functools.partial(self._catch_up, timeout))

    async def _catch_up(self, timeout: float) -> int:
        """File what waits, piece by piece; return how many facts still do."""
        errands, writer = self._opened(), self._writer
        assert writer is not None
        deadline = time.monotonic() + timeout
        # Not what comes meanwhile: others may tell faster than we file.
        newest = await errands.ask(Look(errands.future(), deadline, writer.filing.newest))
        file = functools.partial(writer.filing.catch_up, newest=newest)
        before, left = -1, sys.maxsize if newest else 0
        while left > 0 and left != before and time.monotonic() < deadline:
            before, left = left, await errands.ask(Look(errands.future(), deadline + timeout, file))
        return abs(left)  # after an error at least one

    # Dead letters

    async def letters(self, timeout: float) -> DeadLetters:
        """Return the dead letters of this file, to be asked and closed; `aclose` closes them as well.

        What died until now is put on record first. ``timeout``: seconds for that, and for each question. Raises
        `StorageError` or `BrokerUnavailable`.
        """
        errands, desk = self._opened(), self._desk
        assert desk is not None
        file = await asyncio.to_thread(LetterFile, self._files.path, read_only=True)
        letters = SqliteLetters(errands, desk, file, self.append, timeout, self._letters.discard)
        self._letters.add(letters)
        try:
            await letters.catch_up()
        except BaseException:
            await letters.aclose()
            raise
        return letters

    # Looks

    async def queues(self, timeout: float) -> Sequence[QueueInfo]:
        """See `Broker.queues`."""
        errands = self._opened()
        return await errands.ask(Look(errands.future(), time.monotonic() + timeout, looks.queues))

    async def dead_letters(self, limit: int, timeout: float) -> Sequence[StoredDeadLetter]:
        """See `Broker.dead_letters`."""
        errands = self._opened()
        read = functools.partial(looks.dead_letters, limit=limit)
        return await errands.ask(Look(errands.future(), time.monotonic() + timeout, read))

    def health(self) -> BrokerHealth:
        """See `Broker.health`."""
        writer, desk, database = self._writer, self._desk, self._database
        if writer is None or desk is None or database is None:
            return BrokerHealth(state=self._state)
        state, reason = self._state, ""
        since = writer.intake.waiting_since
        if state is BrokerState.UP:
            if trouble := writer.trouble:
                state, reason = BrokerState.DEGRADED, trouble
            elif since is not None and (held := time.monotonic() - since) > 1.0:
                state = BrokerState.BLOCKED
                reason = f"another process has held the lock of {self._files.path} for {held:.0f} s"
            elif desk.short_of_space:
                state, reason = BrokerState.BLOCKED, desk.short_of_space
        warnings = tuple(text for text in (database.warning, desk.ledger_trouble) if text)
        return BrokerHealth(state=state, reason=reason, counters=dict(desk.counters), warnings=warnings)

    # What the writer thread tells us, on the event loop

    def _ended(self, downs: Sequence[tuple[int, Down]]) -> None:
        if self._watches is not None:
            self._watches.ended(downs)

    def _renewed(self, session: SessionInfo) -> None:
        if self._watches is not None:
            self._watches.ours.add(session.id)
        if self._exchange is not None:
            self._exchange.session_id = session.id
            self._exchange.restore()
        if self._host is not None:
            self._host.renewed(session)

    def _unreachable(self) -> None:
        if self._exchange is not None:
            self._exchange.restore()

    def _orphaned(self) -> None:
        if self._exchange is not None:
            self._exchange.forget()

    def _opened(self) -> Errands:
        if self._errands is None:
            raise BusClosed("the broker is not open")
        self._errands.check()
        return self._errands

    def _connected(self) -> Exchange:
        self._opened()
        if self._exchange is None:
            raise BusClosed("the broker is not open")
        return self._exchange
