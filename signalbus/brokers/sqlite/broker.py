"""The embedded broker: the event loop's side. Turns calls into operations of the writer thread, and bounds them."""

from __future__ import annotations

import asyncio
import functools
import os
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar

from ...codec import EncodedSignal
from ...config import SqliteUrl
from ...errors import (
    Backpressure,
    BrokerError,
    BrokerUnavailable,
    BusClosed,
    ConfigError,
    SignalBusError,
    StorageError,
)
from ...patterns import parse
from ...sessions import SessionInfo
from ..base import (
    BrokerHealth,
    BrokerState,
    PublishOutcome,
    PublishResult,
    QueueInfo,
    StoredDeadLetter,
    SubscriptionSpec,
)
from . import looks
from .clock import Clock
from .consumer import SqliteConsumer
from .database import Database
from .desk import Desk
from .files import Files
from .intake import AnyOperation
from .operations import Declare, Delete, Look, Operation, Publish, Serve, Settle
from .records import pack
from .rounds import Deliveries
from .writer import Writer

T = TypeVar("T")

_PENDING_SIGNALS = 10_000  # publishes beyond either wait for room: memory stays bounded
_PENDING_BYTES = 64 * 1024 * 1024
_CHUNK = 500  # signals of one batch that go together; a huge batch must not hold the lock for long
_TICK_SECONDS = 0.1  # between looks at deadlines, while anything is unanswered
_CLOSE_SECONDS = 5.0


class SqliteBroker:
    """See `Broker`. One file, one writer thread, any number of processes on one machine."""

    def __init__(self, url: SqliteUrl, *, clock: Clock | None = None) -> None:
        self._url = url
        self._clock = clock or Clock()
        self._files = Files(url.path)
        self._state = BrokerState.CLOSED
        self._pid = 0
        self._writer: Writer | None = None
        self._desk: Desk | None = None
        self._database: Database | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._waiting: deque[Publish] = deque()  # publishes that found no room yet, in order
        self._pending_signals = 0
        self._pending_bytes = 0
        self._unanswered = 0
        self._aborts: set[asyncio.Task[None]] = set()
        self.consumers: set[SqliteConsumer] = set()

    # Opening and closing

    async def open(self, session: SessionInfo, timeout: float) -> None:
        """See `Broker.open`."""
        if self._writer is not None:
            raise BusClosed("a broker is opened once; make another one")
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._state = BrokerState.CONNECTING
        self._desk = Desk(self._files, self._clock, session)
        self._database = Database(self._url, self._files)
        self._writer = Writer(
            self._desk,
            self._database,
            self._loop,
            network_filesystem=self._url.network_filesystem,
            report=self._answer,
        )
        _guard_forks()
        _writers.add(self._writer)
        self._writer.start()
        try:
            async with asyncio.timeout(min(timeout, self._url.busy_timeout)):
                await self._writer.opened
        except TimeoutError as error:
            await self._close(0.0)  # the thread waits for a lock; it ends once it has it
            raise BrokerUnavailable(
                f"{self._files.path} could not be opened in time: another process holds its lock; find it with 'fuser'"
            ) from error
        except BaseException:
            await self.aclose()
            raise
        self._state = BrokerState.UP

    async def aclose(self) -> None:
        """See `Broker.aclose`. Bounded by about five seconds."""
        await self._close(_CLOSE_SECONDS)

    async def _close(self, patience: float) -> None:
        self._state = BrokerState.CLOSED
        if self._writer is None or self._pid != os.getpid():
            return
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end(self._writer, patience))
        await asyncio.shield(self._ending)

    async def _end(self, writer: Writer, patience: float) -> None:
        for consumer in list(self.consumers):
            consumer.end()
        while self._waiting:
            _refuse(self._waiting.popleft(), BusClosed("the broker was closed"))
        writer.intake.close()
        deadline = time.monotonic() + patience
        await asyncio.wait({writer.ended}, timeout=patience)
        queued, running = writer.abandon()
        for operation in queued:
            _abandon(operation, started=False)
        for operation in running:
            _abandon(operation, started=True)
        # The thread has said its last word and ends within microseconds.
        while writer.ended.done() and writer.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        if self._ticker is not None:
            self._ticker.cancel()

    # Subscriptions

    async def declare(self, subscription: SubscriptionSpec, timeout: float) -> None:
        """See `Broker.declare`."""
        for pattern in subscription.patterns:
            parse(pattern)
        await self._ask(Declare(self.future(), time.monotonic() + timeout, subscription))

    async def delete(self, name: str, timeout: float) -> None:
        """See `Broker.delete`."""
        await self._ask(Delete(self.future(), time.monotonic() + timeout, name))

    async def consume(self, name: str, prefetch: int, timeout: float) -> SqliteConsumer:
        """See `Broker.consume`. Raises `ConfigError` if the subscription does not exist or is not ours to serve."""
        if prefetch < 1:
            raise ConfigError(f"prefetch is {prefetch}; it must be at least 1")
        consumer = SqliteConsumer(self, name, prefetch)
        serve = Serve(self.future(), time.monotonic() + timeout, consumer.claimant)
        try:
            await self._ask(serve)
        except (BrokerError, asyncio.CancelledError):
            # It may be served all the same, a moment later: then nobody would ever settle what it gets.
            self._abort(consumer)
            raise
        self.consumers.add(consumer)
        return consumer

    def _abort(self, consumer: SqliteConsumer) -> None:
        task = asyncio.ensure_future(consumer.aclose())
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)

    # Signals

    async def publish(self, batch: Sequence[EncodedSignal], timeout: float) -> Sequence[PublishOutcome]:
        """See `Broker.publish`. Also raises `StorageError`, if it is certain that nothing was stored."""
        self._check()
        deadline = time.monotonic() + timeout
        records = [pack(signal) for signal in batch]
        if len(records) <= _CHUNK:
            return await self._publish(Publish(self.future(), deadline, records)) if records else ()
        chunks = [records[start : start + _CHUNK] for start in range(0, len(records), _CHUNK)]
        futures = [self._publish(Publish(self.future(), deadline, chunk)) for chunk in chunks]
        return _joined(chunks, await asyncio.gather(*futures, return_exceptions=True))

    def _publish(self, operation: Publish) -> asyncio.Future[Sequence[PublishOutcome]]:
        assert operation.future is not None
        if self._waiting or self._pending_signals >= _PENDING_SIGNALS or self._pending_bytes >= _PENDING_BYTES:
            self._waiting.append(operation)
            self._watch()
        else:
            self._admit(operation)
        return operation.future

    def _admit(self, operation: Publish) -> None:
        self._pending_signals += operation.weight
        self._pending_bytes += operation.size
        self._submit(operation)

    async def settle(self, operation: Settle) -> bool:
        """Carry out a settlement for a consumer; False once the broker is closed."""
        if self._state is BrokerState.CLOSED:
            return False
        self._check_process()
        assert operation.future is not None
        self._submit(operation)
        settled = await operation.future
        if not settled and self._desk is not None:
            self._desk.counters["settles_lost"] += 1
        return settled

    # Looks

    async def queues(self, timeout: float) -> Sequence[QueueInfo]:
        """See `Broker.queues`."""
        return await self._ask(Look(self.future(), time.monotonic() + timeout, looks.queues))

    async def dead_letters(self, limit: int, timeout: float) -> Sequence[StoredDeadLetter]:
        """See `Broker.dead_letters`."""
        read = functools.partial(looks.dead_letters, limit=limit)
        return await self._ask(Look(self.future(), time.monotonic() + timeout, read))

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
        warnings = (database.warning,) if database.warning else ()
        return BrokerHealth(state=state, reason=reason, counters=dict(desk.counters), warnings=warnings)

    # Operations

    def future(self) -> asyncio.Future[Any]:
        """Return a future of the broker's event loop. Raises `BusClosed` if there is none."""
        if self._loop is None:
            raise BusClosed("the broker is not open")
        return self._loop.create_future()

    async def finish(self, operation: AnyOperation) -> None:
        """Submit an operation of a consumer that ends, and wait for it a while; it happens in any case."""
        if self._state is BrokerState.CLOSED or self._pid != os.getpid():
            return
        assert operation.future is not None
        try:
            self._submit(operation)
        except StorageError:
            return  # the writer has died, and said so; our claims go back when the process lets go of its lock
        await asyncio.wait({operation.future}, timeout=_CLOSE_SECONDS)

    async def _ask(self, operation: Operation[T]) -> T:
        self._check()
        assert operation.future is not None
        self._submit(operation)
        return await operation.future

    def _check(self) -> None:
        self._check_process()
        if self._state is not BrokerState.UP:
            raise BusClosed("the broker is not open")

    def _check_process(self) -> None:
        if self._pid != os.getpid() and self._pid:
            raise ConfigError(
                "this broker was opened before the process forked; open one of its own in each process, after the fork"
            )

    def _submit(self, operation: AnyOperation) -> None:
        assert self._writer is not None
        self._writer.intake.submit(operation)
        self._unanswered += 1
        if self._ticker is None:
            self._watch()

    def _answer(self, operations: Sequence[AnyOperation], deliveries: Deliveries) -> None:
        """Take over what the writer thread has done; called on the event loop."""
        for operation in operations:
            operation.resolve()
            if isinstance(operation, Publish):
                self._pending_signals -= len(operation.records)
                self._pending_bytes -= operation.size
        self._unanswered -= len(operations)
        for claimant, incoming in deliveries:
            claimant.sink(incoming)
        if self._waiting:
            self._fill()

    def _fill(self) -> None:
        while self._waiting and self._pending_signals < _PENDING_SIGNALS and self._pending_bytes < _PENDING_BYTES:
            operation = self._waiting.popleft()
            if operation.future is None or operation.future.done():
                continue
            try:
                self._admit(operation)
            except StorageError as error:
                _refuse(operation, error)

    # Deadlines

    def _watch(self) -> None:
        if self._ticker is None and self._loop is not None:
            self._ticker = self._loop.call_later(_TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        assert self._writer is not None
        now = time.monotonic()
        for operation in self._writer.intake.expire(now, self._url.busy_timeout):
            self._unanswered -= 1
            if isinstance(operation, Publish):
                self._pending_signals -= operation.weight
                self._pending_bytes -= operation.size
        for operation in [operation for operation in self._waiting if operation.deadline <= now]:
            self._waiting.remove(operation)
            text = f"{self._pending_signals} signals are waiting to be stored already; nothing of this one was"
            _refuse(operation, Backpressure(text))
        self._fill()
        if (self._unanswered > 0 or self._waiting) and self._state is not BrokerState.CLOSED:
            self._watch()


def _joined(
    chunks: Sequence[Sequence[object]], answers: Sequence[Sequence[PublishOutcome] | BaseException]
) -> list[PublishOutcome]:
    """Join the outcomes of the parts of a batch; an error of some of them means that they were not stored."""
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if len(errors) == len(answers) or not isinstance(error, BrokerError):
            raise error
    outcomes: list[PublishOutcome] = []
    for chunk, answer in zip(chunks, answers, strict=True):
        if isinstance(answer, BaseException):
            outcomes.extend([PublishOutcome(PublishResult.REFUSED, str(answer))] * len(chunk))
        else:
            outcomes.extend(answer)
    return outcomes


def _refuse(operation: AnyOperation, error: SignalBusError) -> None:
    if operation.future is not None and not operation.future.done():
        operation.future.set_exception(error)


def _abandon(operation: AnyOperation, *, started: bool) -> None:
    """Answer for a writer that did not end in time."""
    future = operation.future
    if future is None or future.done():
        return
    if isinstance(operation, Settle):
        future.set_result(False)
    elif operation.persistent:
        future.set_result(None)
    else:
        operation.expire("the broker was closed while the database did not answer", started=started)


_writers: weakref.WeakSet[Writer] = weakref.WeakSet()  # what a forked child has to let go of


@functools.cache
def _guard_forks() -> None:
    os.register_at_fork(after_in_child=_forget_inherited)


def _forget_inherited() -> None:
    for writer in list(_writers):
        writer.forget()
    _writers.clear()
