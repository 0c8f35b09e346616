"""Serving one subscription: from deliveries to handler runs to settlements.

Every delivery that is received ends in exactly one settlement, or is given back by the broker when we stop.
Decisions come from `signalbus.delivery`; this module runs handlers and keeps count.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple, TypedDict

from .brokers.base import Broker, Consumer, Incoming, SubscriptionSpec
from .codec import CAUSATION, RECEIPT_TO, text_header
from .delivery import (
    ACK,
    RELEASE,
    Ack,
    DeadLetter,
    Release,
    RetryLater,
    Settlement,
    after_crashes,
    after_failure,
    describe,
)
from .errors import BrokerError, ConfigError, DecodeError, Retry
from .handlers import Delivery, Handler, absorb_cancellation
from .ledger import Recorder, silent
from .policy import RetryPolicy
from .services import Tell
from .sessions import ServiceReport
from .signals import utc_now
from .telemetry import Telemetry
from .timelimit import TimeLimit

log = logging.getLogger(__name__)

#: RabbitMQ closes the channel of a delivery that is unacked for 30 minutes (``consumer_timeout``).
LONGEST_TIMEOUT = timedelta(minutes=29)
FIRST_PAUSE = 0.5  # seconds before repeating what the broker could not do; doubles
LONGEST_PAUSE = 5.0
VERDICTS = 4_096  # verdicts remembered until their signals come again
ACKS = 1_024  # acks remembered in case their connection lost them; more than are on their way at a time
USUAL_WEIGHT = 0.1  # of the newest run in the average of what a handler takes
VERDICT_SECONDS = 600.0  # a redelivery comes within seconds; much later it is something else

_Key = tuple[str, str]


class SubscribeKeywords(TypedDict, total=False):
    """The keyword arguments of `Bus.subscribe`, but for the handler."""

    name: str | None
    retry: RetryPolicy
    concurrency: int
    prefetch: int | None
    timeout: timedelta | float
    max_crashes: int
    durable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriberOptions:
    """How a subscription is served by this process.

    ``concurrency``: handlers at a time. ``prefetch``: unsettled deliveries held at most. ``timeout``: of one handler
    run. ``max_crashes``: deaths of subscribers after which a delivery becomes a dead letter.
    """

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    concurrency: int = 1
    prefetch: int | None = None
    timeout: timedelta = timedelta(minutes=15)
    max_crashes: int = 10

    def __post_init__(self) -> None:
        for name, value in (("concurrency", self.concurrency), ("max_crashes", self.max_crashes)):
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.prefetch is not None and not self.concurrency <= self.prefetch <= 65_535:
            raise ConfigError(
                f"prefetch is {self.prefetch}; it must be from concurrency ({self.concurrency}) to 65535, "
                "or handlers would idle"
            )
        if not timedelta(0) < self.timeout <= LONGEST_TIMEOUT:
            raise ConfigError(
                f"timeout is {self.timeout}; it must be above zero and at most {LONGEST_TIMEOUT}, "
                "since RabbitMQ takes a delivery back after 30 minutes"
            )

    @property
    def window(self) -> int:
        """Deliveries held at most: enough to hide a commit, few enough to share with other subscribers."""
        return self.prefetch if self.prefetch is not None else max(16, 2 * self.concurrency)


@dataclass(slots=True, kw_only=True)
class SubscriptionStats:
    """Counters of a subscription in this process since the bus was opened; ``waiting`` and ``in_flight`` are now."""

    received: int = 0
    redelivered: int = 0
    acked: int = 0
    retried: int = 0
    dead: int = 0
    released: int = 0
    lost_settlements: int = 0
    in_flight: int = 0
    waiting: int = 0
    last_error: str = ""


@dataclass(slots=True, eq=False)
class _Stream:
    """One consumer at the broker, and how many of its deliveries are in our hands."""

    consumer: Consumer
    held: int = 0
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Run:
    """A handler run, with the copies of its delivery that came before it was settled."""

    incoming: Incoming
    twins: tuple[tuple[_Stream, Incoming], ...] = ()

    def covers(self, incoming: Incoming) -> bool:
        """Tell whether ``incoming`` is the same attempt, come again because its connection was lost.

        A retry is another attempt; a replay and a publisher's duplicate start from zero: those have to run.
        """
        return incoming.attempt == self.incoming.attempt and incoming.crashes > self.incoming.crashes


class _Verdict(NamedTuple):
    """What became of a delivery. It holds no body, since many are kept."""

    # A tuple is made in half the time of a frozen dataclass; each delivery leaves one.

    attempt: int
    crashes: int
    settlement: Settlement
    at: float

    def covers(self, incoming: Incoming) -> bool:
        """Tell whether ``incoming`` is the same attempt, come again; see `_Run.covers`."""
        return incoming.attempt == self.attempt and incoming.crashes > self.crashes


_Verdicts = OrderedDict[_Key, _Verdict]


class Subscriber:
    """Serves one subscription over a broker, until it is stopped. Restartable: `serve` may be called again."""

    def __init__(
        self,
        broker: Broker,
        spec: SubscriptionSpec,
        handler: Handler,
        options: SubscriberOptions,
        session: Callable[[], str],
        tell: Tell,
        telemetry: Telemetry,
        recorder: Recorder | None = None,
    ) -> None:
        self.stats = SubscriptionStats()
        self.ready = asyncio.Event()  # the broker counts us as a consumer
        self._broker = broker
        self._spec = spec
        self._handler = handler
        self._options = options
        self._session = session
        self._tell = tell
        self._telemetry = telemetry
        self._recorder = silent() if recorder is None else recorder  # an empty one is false
        self._progress = 0.0  # when we last settled one, or took one with empty hands
        self._usual = 0.0  # seconds a handler takes, as a moving average
        self._wanted = asyncio.Event()  # cleared while paused
        self._wanted.set()
        self._stopping = False
        self._streams: set[_Stream] = set()
        self._waiting: deque[tuple[_Stream, Incoming]] = deque()
        self._running: dict[_Key, _Run] = {}
        self._unrecorded: _Verdicts = OrderedDict()  # their connections did not live to record them
        self._acked: _Verdicts = OrderedDict()  # a broker that does not confirm acks may have lost them too
        self._cancelling = False
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        self._limit = TimeLimit(options.timeout.total_seconds())
        self._threads = ThreadPoolExecutor(options.concurrency, thread_name_prefix=f"signalbus-{spec.name}")

    def report(self) -> ServiceReport:
        """Return what to say of it to others."""
        holds = any(stream.held for stream in self._streams)
        return ServiceReport(
            name=self._spec.name,
            concurrency=self._options.concurrency,
            in_flight=self.stats.in_flight,
            waiting=self.stats.waiting,
            stuck_seconds=self._loop.time() - self._progress if holds else 0.0,
            usual_seconds=self._usual,
            last_error=self.stats.last_error,
            received=self.stats.received,
            acked=self.stats.acked,
            failed=self.stats.retried + self.stats.dead,
        )

    async def serve(self, timeout: float) -> None:
        """Consume and handle until `stop`; through pauses and losses of the broker. ``timeout`` for each call to it."""
        pause = FIRST_PAUSE
        while not self._stopping:
            await self._wanted.wait()
            try:
                consumer = await self._broker.consume(self._spec.name, self._options.window, timeout)
            except BrokerError as error:
                self.stats.last_error = str(error)
                log.warning("%s: not served yet, trying again: %s", self._spec.name, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            await self._serve_stream(_Stream(consumer))

    async def _serve_stream(self, stream: _Stream) -> None:
        self._streams.add(stream)
        self.ready.set()
        try:
            if not self._taking:
                await stream.consumer.stop()  # asked for while we connected
            while batch := await stream.consumer.receive():
                self._take(stream, batch)
        finally:
            self.ready.clear()
            stream.ended = True
            await self._retire(stream)

    async def _retire(self, stream: _Stream) -> None:
        """Close a consumer that takes nothing more, once its last delivery is settled."""
        if stream.ended and not stream.held and stream in self._streams:
            self._streams.discard(stream)
            await stream.consumer.aclose()

    async def pause(self) -> None:
        """Take nothing more; what was not started goes back, running handlers go on."""
        self._wanted.clear()
        await self._stop_streams()

    def resume(self) -> None:
        """Take deliveries again."""
        self._wanted.set()

    async def stop(self, grace: float) -> None:
        """Stop taking, let running handlers end within ``grace`` seconds, cancel the rest, give everything back."""
        self._stopping = True
        self._wanted.set()
        await self._stop_streams()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=grace)
            if late:
                log.warning(
                    "%s: %d handlers did not end within %.1f s; cancelling them, their signals will come again",
                    self._spec.name,
                    len(late),
                    grace,
                )
                self._cancelling = True
                for task in late:
                    task.cancel()
                await asyncio.wait(late, timeout=min(grace, 5.0))
        for stream in list(self._streams):
            await stream.consumer.aclose()
        self._streams.clear()
        self._limit.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def _taking(self) -> bool:
        return self._wanted.is_set() and not self._stopping

    async def _stop_streams(self) -> None:
        for stream in list(self._streams):
            await stream.consumer.stop()
        self._release_waiting()

    def _release_waiting(self) -> None:
        while self._waiting:
            stream, incoming = self._waiting.popleft()
            self._begin(self._settle(stream, incoming, RELEASE))
        self.stats.waiting = 0

    def _take(self, stream: _Stream, batch: Sequence[Incoming]) -> None:
        if not any(other.held for other in self._streams):
            self._progress = self._loop.time()
        stream.held += len(batch)
        self.stats.received += len(batch)
        for incoming in batch:
            if incoming.redelivered:
                self.stats.redelivered += 1
                if verdict := self._recall(incoming):
                    self._begin(self._settle(stream, incoming, verdict))
                    continue
            self._waiting.append((stream, incoming))
        if not self._taking:
            self._release_waiting()  # received between the wish to stop and the stop
        self._start_waiting()

    def _recall(self, incoming: Incoming) -> Settlement | None:
        """Return the verdict on an earlier copy of this very attempt, if its recording was lost with the connection.

        Without this, a handler that blocks the event loop longer than the heartbeat runs again and again, for ever.
        """
        key = (incoming.signal.id, incoming.signal.type)
        for verdicts in (self._unrecorded, self._acked):
            known = verdicts.get(key)
            if known is not None and known.covers(incoming):
                late = self._loop.time() - known.at > VERDICT_SECONDS
                return None if late else known.settlement
        return None

    def _start_waiting(self) -> None:
        """Start handlers up to the limit; none while what waits is about to be given back."""
        waiting, stats = self._waiting, self.stats
        while waiting and self._taking and stats.in_flight < self._options.concurrency:
            stream, incoming = waiting.popleft()
            key = (incoming.signal.id, incoming.signal.type)
            run = self._running.get(key)
            if run is not None and run.covers(incoming):
                # Running it twice at the same time would double its effect; the first run decides for both.
                run.twins += ((stream, incoming),)
                continue
            run = self._running[key] = _Run(incoming)
            stats.in_flight += 1
            self._tasks.add(self._new_task(self._handle(stream, run, key)))
        stats.waiting = len(waiting)

    def _begin(self, work: Coroutine[object, object, object]) -> None:
        task = self._new_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _new_task(self, work: Coroutine[object, object, object]) -> asyncio.Task[object]:
        if self._loop.get_task_factory() is not None:
            return self._loop.create_task(work)
        return asyncio.Task(work, loop=self._loop)  # what that does, but for naming each of them

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.stats.last_error = repr(error)
            log.critical("%s: a delivery could not be settled", self._spec.name, exc_info=error)

    async def _handle(self, stream: _Stream, run: _Run, key: _Key) -> None:
        """Run a handler and settle, in a task of its own, which sees to its own end: a callback for that is dear."""
        task = asyncio.current_task()
        assert task is not None
        try:
            settlement, took = await self._timed(run.incoming, task)
            if task.cancelling() and not self._cancelling:
                await absorb_cancellation(task)
            recorded = await self._settle_all(stream, run, settlement, took)
            if self._running.get(key) is run:
                del self._running[key]
            if not recorded:
                self._remember(self._unrecorded, key, run.incoming, settlement, VERDICTS)
            elif settlement is ACK:
                # Only acks: what was recorded as a retry or a dead letter may be replayed, and then has to run.
                self._remember(self._acked, key, run.incoming, settlement, ACKS)
        except Exception as error:
            # Our own bug: handlers' errors became settlements. The delivery stays unsettled and comes again.
            self.stats.last_error = repr(error)
            log.critical("%s: a delivery could not be settled", self._spec.name, exc_info=error)
        finally:
            self._tasks.discard(task)

    async def _timed(self, incoming: Incoming, task: asyncio.Task[object]) -> tuple[Settlement, float]:
        """Run the handler; return the settlement, and the seconds that it took."""
        clock = self._loop.time
        began = clock()
        try:
            settlement = await self._run(incoming, task, began)
        finally:
            took = clock() - began
            self._usual += USUAL_WEIGHT * (took - self._usual)
            # The slot is free as soon as the handler ended: the next one need not wait for our commit.
            self.stats.in_flight -= 1
            if self._waiting:
                self._start_waiting()
        return settlement, took

    async def _run(self, incoming: Incoming, task: asyncio.Task[object], now: float) -> Settlement:
        """Run the handler; whatever it raises becomes a settlement."""
        if incoming.malformed is not None:
            return self._after(DecodeError(incoming.malformed), incoming)
        if incoming.crashes >= self._options.max_crashes:
            dead = after_crashes(incoming.crashes, incoming.history)
            self.stats.last_error = dead.detail
            log.error("%s: %s is a dead letter, %s", self._spec.name, incoming.signal.id, dead.detail)
            return dead
        if self._recorder.tells(incoming.signal.id):
            self._tell_delivered(incoming)
        expired = False
        self._limit.begin(task, now)
        try:
            try:
                await self._call(incoming)
            finally:
                expired = self._limit.end(task)
        except asyncio.CancelledError as error:
            if expired:
                return self._after(_timeout(error), incoming)
            if self._cancelling:
                raise  # the drain is over: unsettled, so it comes again
            return self._after(error, incoming)
        except BaseException as error:  # noqa: BLE001 - foreign code: whatever it raises is a failed attempt
            return self._after(error, incoming)
        return ACK

    async def _call(self, incoming: Incoming) -> None:
        handler, signal = self._handler, incoming.signal
        delivery = self._delivery(incoming) if handler.takes_delivery else None
        if not self._telemetry.active:
            await handler(signal, delivery, self._threads)
            return
        with self._telemetry.processing(signal, self._spec.name):
            await handler(signal, delivery, self._threads)

    def _delivery(self, incoming: Incoming) -> Delivery:
        return Delivery(
            subscription=self._spec.name,
            attempt=incoming.attempt,
            crashes=incoming.crashes,
            redelivered=incoming.redelivered,
            history=incoming.history,
            encoded=incoming.signal,
        )

    def _after(self, error: BaseException, incoming: Incoming) -> Settlement:
        name, signal = self._spec.name, incoming.signal
        failure = describe(error, attempt=incoming.attempt, at=utc_now(), session=self._session())
        settlement = after_failure(
            error,
            failure,
            policy=self._options.retry,
            history=incoming.history,
            random=random.random(),  # noqa: S311
        )
        self.stats.last_error = f"{failure.error}: {failure.message}"
        match settlement:
            case DeadLetter():
                log.error(
                    "%s: %s %s is a dead letter, %s: %s",
                    name,
                    signal.type,
                    signal.id,
                    settlement.reason,
                    settlement.detail,
                )
            case RetryLater() if not isinstance(error, Retry):
                log.warning(
                    "%s: %s %s failed on attempt %d, again in %.1f s: %s: %s",
                    name,
                    signal.type,
                    signal.id,
                    incoming.attempt,
                    settlement.delay.total_seconds(),
                    failure.error,
                    failure.message,
                )
            case _:
                pass
        return settlement

    async def _settle_all(self, stream: _Stream, run: _Run, settlement: Settlement, took: float) -> bool:
        """Settle a delivery and its copies; return whether the verdict is recorded."""
        recorded = await self._settle(stream, run.incoming, settlement, took)
        while run.twins:
            (twin_stream, twin), *rest = run.twins
            run.twins = tuple(rest)
            # Once the verdict is recorded, further copies are duplicates.
            verdict = ACK if recorded else settlement
            recorded = await self._settle(twin_stream, twin, verdict, took, again=recorded) or recorded
        return recorded

    async def _settle(
        self,
        stream: _Stream,
        incoming: Incoming,
        settlement: Settlement,
        took: float | None = None,
        *,
        again: bool = False,
    ) -> bool:
        """Settle, repeatedly while the broker cannot store it; return whether it is recorded.

        ``took``: seconds that the handler ran. ``again``: this attempt is settled already, by another copy.
        """
        pause = FIRST_PAUSE
        recorded: bool | None = None
        while recorded is None:
            try:
                recorded = await stream.consumer.settle(incoming, settlement)
            except BrokerError as error:
                name = self._spec.name
                log.warning("%s: settling %s failed, trying again: %s", name, incoming.signal.id, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        stream.held -= 1
        self._progress = self._loop.time()
        self._count(settlement, recorded)
        if recorded and not again:
            self._tell_settled(incoming, settlement, took)
        if recorded and (to := incoming.signal.headers.get(RECEIPT_TO)) is not None:
            self._tell(str(to), incoming.signal.id, self._spec.name, settlement)
        if stream.ended:
            await self._retire(stream)
        return recorded

    def _tell_delivered(self, incoming: Incoming) -> None:
        signal = incoming.signal
        self._recorder.delivered(
            signal.id,
            signal.type,
            self._spec.name,
            incoming.attempt,
            incoming.crashes,
            None,  # when it could be handed out, only the broker knows
            text_header(signal, CAUSATION),
        )

    def _tell_settled(self, incoming: Incoming, settlement: Settlement, took: float | None) -> None:
        recorder, signal, name = self._recorder, incoming.signal, self._spec.name
        where = (signal.id, signal.type, name, incoming.attempt, incoming.crashes)
        match settlement:
            case Ack():
                recorder.acked(*where, took)
            case RetryLater(delay=delay, history=history):
                error, message = (history[-1].error, history[-1].message) if history else ("", "")
                recorder.retried(*where, took, error, message, delay.total_seconds())
            case DeadLetter(reason=reason, detail=detail, history=history):
                recorder.dead(*where, took, reason.value, detail, history[-1].error if history else "")
            case Release():
                recorder.released(*where)

    def _remember(self, verdicts: _Verdicts, key: _Key, incoming: Incoming, settlement: Settlement, limit: int) -> None:
        verdicts[key] = _Verdict(incoming.attempt, incoming.crashes, settlement, self._loop.time())
        if len(verdicts) > limit:
            verdicts.popitem(last=False)

    def _count(self, settlement: Settlement, recorded: bool) -> None:
        stats = self.stats
        if not recorded:
            stats.lost_settlements += 1
            return
        match settlement:
            case Ack():
                stats.acked += 1
            case RetryLater():
                stats.retried += 1
            case DeadLetter():
                stats.dead += 1
            case Release():
                stats.released += 1


def _timeout(cancellation: asyncio.CancelledError) -> TimeoutError:
    """Return what `asyncio.timeout` would have raised; its cause shows where the handler was."""
    error = TimeoutError()
    error.__cause__ = cancellation
    return error
