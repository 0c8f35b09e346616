"""Serving one subscription: a consumer that is made again after every loss.

Each incarnation is one channel. Deliveries belong to it: when it is gone they cannot be settled any more, and the
broker hands them out again, to somebody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass

from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp import commands
from tenacity import RetryCallState
from tenacity.wait import wait_random_exponential

from ...delivery import Ack, DeadLetter, Release, RetryLater, Settlement
from ...errors import BrokerError, BrokerUnavailable, ConfigError
from ..base import Incoming
from . import delays, wire
from .connection import Link
from .copies import Copies, NotStored
from .delays import Plan
from .driver import DriverFailure, FrameWriter, call, close_quietly, on_closed
from .subscriptions import Declared, Subscriptions
from .tasks import Keeper, end

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
STOP_SECONDS = 3.0
RELEASES = 10_000  # given back and not seen again, remembered at most


class Releases:
    """How often this process gave messages back untouched. Quorum queues count that as if a subscriber had died."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, int] = OrderedDict()

    def note(self, message_id: str | None) -> None:
        """Remember that a message was given back."""
        if message_id is None:
            return
        self._counts[message_id] = self._counts.pop(message_id, 0) + 1
        if len(self._counts) > RELEASES:
            self._counts.popitem(last=False)

    def forget(self, message_id: str | None) -> None:
        """Forget a message: what happens to it from now on is something else."""
        if message_id is not None:
            self._counts.pop(message_id, None)

    def of(self, message_id: str | None) -> int:
        """Return how often a message was given back."""
        return self._counts.get(message_id, 0) if message_id is not None else 0


@dataclass(slots=True, eq=False)
class _Handle:
    """What a delivery is to us: a tag on one incarnation. ``held`` until it is settled or lost."""

    incarnation: Incarnation
    tag: int
    message_id: str | None
    held: bool = True
    timer: asyncio.TimerHandle | None = None


class Incarnation:
    """One channel that consumes one queue. Dead once the channel is."""

    def __init__(self, channel: AbstractChannel, declared: Declared) -> None:
        self.channel = channel
        self.declared = declared
        self.alive = True
        self.ended = asyncio.Event()
        self.reason = ""
        self.tag = ""
        self.held: dict[int, Incoming] = {}
        self.deliveries = 0
        self.writer = FrameWriter(channel)
        # Callbacks that call the driver would stop its reader for ever; these only note what happened.
        on_closed(channel, self._on_closed)
        channel.on_consumer_cancel_callbacks.add(self._on_cancelled)

    def end(self, reason: str) -> None:
        """Give this incarnation up."""
        if not self.reason:
            self.reason = reason
        self.ended.set()

    def kill(self) -> None:
        """Forget every delivery: none of them is ours any more."""
        self.alive = False
        self.writer.kill()
        for incoming in self.held.values():
            handle = incoming.handle
            assert isinstance(handle, _Handle)
            handle.held = False
            if handle.timer is not None:
                handle.timer.cancel()
        self.held.clear()

    def _on_closed(self, failure: DriverFailure) -> None:
        self.kill()
        self.end(f"the channel was closed: {failure.reason}")

    def _on_cancelled(self, frame: commands.Basic.Cancel) -> None:
        self.end("the broker cancelled the consumer: its queue is gone or moved")


class RabbitConsumer:
    """Implements `Consumer`."""

    def __init__(
        self,
        name: str,
        prefetch: int,
        *,
        link: Link,
        subscriptions: Subscriptions,
        copies: Copies,
        keeper: Keeper,
        releases: Releases,
        counters: Counter[str],
        backoff_cap: float,
    ) -> None:
        self.name = name
        self.prefetch = prefetch
        self.problem: str | None = None
        self.refused: ConfigError | None = None
        self.incarnation: Incarnation | None = None
        self.served = asyncio.Event()
        self._link = link
        self._subscriptions = subscriptions
        self._copies = copies
        self._releases = releases
        self._counters = counters
        self._backoff = wait_random_exponential(multiplier=0.1, max=backoff_cap)
        self._buffer: deque[Incoming] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._stopping = asyncio.Lock()
        self._closed = False
        self._changed = asyncio.Event()
        self._task = keeper.keep(f"consumer of {name}", self._run)

    # For the broker

    async def wait_served(self, timeout: float) -> None:
        """Wait until the broker counts us. Raises `ConfigError` or `BrokerUnavailable`."""
        try:
            async with asyncio.timeout(timeout):
                while not self.served.is_set():
                    if self.refused is not None:
                        raise self.refused
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            reason = self.problem or self._link.trouble("no answer")
            raise BrokerUnavailable(f"subscription {self.name!r} is not served: {reason}") from error

    @property
    def stopped(self) -> bool:
        """Whether it takes nothing more."""
        return self._stopped

    def vanish(self) -> None:
        """Its subscription is deleted: end the stream."""
        self._stopped = True
        self._wake()

    def recycle(self, reason: str) -> None:
        """Give the present incarnation up and make a new one."""
        if self.incarnation is not None:
            self.incarnation.end(reason)

    # Implements Consumer

    async def receive(self) -> Sequence[Incoming]:
        """Wait for deliveries."""
        while not self._buffer:
            if self._stopped:
                return ()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        batch = list(self._buffer)
        self._buffer.clear()
        return batch

    async def settle(self, incoming: Incoming, settlement: Settlement) -> bool:
        """Carry a settlement out."""
        handle = incoming.handle
        if not isinstance(handle, _Handle) or not handle.held:
            self._counters["settles_lost"] += 1
            return False
        if isinstance(settlement, Ack):
            self._ack(handle)
            return True
        if isinstance(settlement, Release):
            self._release(handle)
            return True
        # Nobody else may settle it while its copy is made; a lost incarnation takes it away.
        incarnation = handle.incarnation
        handle.held = False

        def wanted() -> bool:
            return incarnation.alive

        try:
            if isinstance(settlement, DeadLetter):
                queue = incarnation.declared.queue
                await self._copies.dead_letter(incoming, settlement, self.name, queue, wanted)
            elif await self._retry(incoming, handle, settlement):
                return True
        except NotStored as error:
            if not incarnation.alive:
                self._counters["settles_lost"] += 1
                return False
            handle.held = True
            raise BrokerUnavailable(
                f"{type(settlement).__name__} of {incoming.signal.id} not stored: {error}"
            ) from error
        except asyncio.CancelledError:
            handle.held = incarnation.alive
            raise
        if not incarnation.alive:
            self._counters["settles_lost"] += 1
            return False  # the copy is stored and the original comes again: a duplicate
        handle.held = True
        self._ack(handle)
        return True

    async def stop(self) -> None:
        """Take nothing more."""
        async with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            self._wake()
            incarnation = self.incarnation
            if incarnation is not None and incarnation.alive:
                await close_quietly(incarnation.channel.basic_cancel(incarnation.tag), STOP_SECONDS)
            unseen, self._buffer = self._buffer, deque()
            for incoming in unseen:
                if isinstance(incoming.handle, _Handle) and incoming.handle.held:
                    self._release(incoming.handle)
            await self._advance_waiting()

    async def aclose(self) -> None:
        """Stop, and give back everything unsettled."""
        self._closed = True
        await self.stop()
        self._subscriptions.consumers.discard(self)
        incarnation = self.incarnation
        if incarnation is not None and incarnation.alive:
            for incoming in list(incarnation.held.values()):
                if isinstance(incoming.handle, _Handle) and incoming.handle.held:
                    self._release(incoming.handle)
            await incarnation.writer.drain(STOP_SECONDS)
            incarnation.end("closed")
        for chore in list(self._chores):
            chore.cancel()
        if incarnation is not None:
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
        await end(self._task)

    # Settling

    def _ack(self, handle: _Handle) -> None:
        incarnation = handle.incarnation
        handle.held = False
        del incarnation.held[handle.tag]
        incarnation.writer.write(wire.ack(incarnation.channel.number, handle.tag))

    def _release(self, handle: _Handle) -> None:
        incarnation = handle.incarnation
        handle.held = False
        if handle.timer is not None:
            handle.timer.cancel()
        del incarnation.held[handle.tag]
        self._releases.note(handle.message_id)
        incarnation.writer.write(wire.nack(incarnation.channel.number, handle.tag))

    async def _retry(self, incoming: Incoming, handle: _Handle, settlement: RetryLater) -> bool:
        """Store the next attempt. True: it is waited out here, nothing is to be acknowledged."""
        plan = delays.plan(settlement.delay.total_seconds())
        following = _next_attempt(incoming, settlement)
        if not plan.steps:
            if not self._stopped:
                self._wait_here(following, handle, plan.rest)
                return True
            plan = delays.plan(delays.SHORTEST)
        incarnation = handle.incarnation
        await self._copies.delay(following, plan, incarnation.declared.return_key, lambda: incarnation.alive)
        return False

    def _wait_here(self, following: Incoming, handle: _Handle, seconds: float) -> None:
        """Hold a delivery for less than a second, then hand it out again."""
        incarnation = handle.incarnation
        again = _Handle(incarnation, handle.tag, handle.message_id)
        following.handle = again
        incarnation.held[handle.tag] = following

        def due() -> None:
            again.timer = None
            if again.held:
                self._hand_out(following)

        again.timer = asyncio.get_running_loop().call_later(seconds, due)

    async def _advance_waiting(self) -> None:
        """Put what waits here on the shortest step, so that its attempt is not forgotten."""
        incarnation = self.incarnation
        if incarnation is None or not incarnation.alive:
            return
        waiting: list[tuple[Incoming, _Handle]] = []
        for incoming in list(incarnation.held.values()):
            handle = incoming.handle
            if isinstance(handle, _Handle) and handle.held and handle.timer is not None:
                handle.timer.cancel()
                handle.timer = None
                waiting.append((incoming, handle))
        if not waiting:
            return
        plan = delays.plan(delays.SHORTEST)
        work = [self._move_on(incoming, handle, plan) for incoming, handle in waiting]
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*work)
        except TimeoutError:
            # Their attempt is forgotten, they are not.
            for _, handle in waiting:
                if handle.held and handle.tag in incarnation.held:
                    self._release(handle)

    # Taking deliveries

    async def _on_message(self, message: DeliveredMessage) -> None:
        incarnation = self.incarnation
        if incarnation is None or message.channel is not incarnation.channel:
            return  # of an incarnation that is gone
        declared = incarnation.declared
        read = wire.read(message, counted=declared.counted)
        incoming = read.incoming
        tag = message.delivery_tag or 0
        handle = incoming.handle = _Handle(incarnation, tag, read.message_id)
        incarnation.held[tag] = incoming
        incarnation.deliveries += 1
        if self._stopped:
            self._release(handle)
            return
        if message.redelivered:
            released = self._releases.of(read.message_id)
            if declared.counted:
                incoming.crashes = max(0, incoming.crashes - released)
            elif released:
                self._releases.forget(read.message_id)
            else:
                # Classic queues do not count; a copy carries the count on.
                incoming.crashes += 1
                if declared.durable:
                    self._chore(self._count_crash(incoming, handle))
                    return
        if read.wait.steps:
            self._chore(self._move_on(incoming, handle, read.wait))
        elif read.wait.rest:
            self._wait_here(incoming, handle, read.wait.rest)
        else:
            self._buffer.append(incoming)
            if self._waiter is not None:
                self._wake()

    def _hand_out(self, incoming: Incoming) -> None:
        self._buffer.append(incoming)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _chore(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chore_ended)

    def _chore_ended(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s: a delivery could not be passed on", self.name, exc_info=error)
            self.recycle("a delivery could not be passed on")

    async def _move_on(self, incoming: Incoming, handle: _Handle, plan: Plan) -> None:
        """Send a delivery to the next step of its delay."""
        incarnation = handle.incarnation
        key = incarnation.declared.return_key
        while handle.held and incarnation.alive:
            try:
                await self._copies.delay(incoming, plan, key, lambda: incarnation.alive)
            except NotStored as error:
                log.warning("%s: %s waits for the next step of its delay: %s", self.name, incoming.signal.id, error)
                continue
            if handle.held:
                self._ack(handle)

    async def _count_crash(self, incoming: Incoming, handle: _Handle) -> None:
        incarnation = handle.incarnation
        while handle.held and incarnation.alive:
            try:
                await self._copies.requeue(incoming, incarnation.declared.queue, lambda: incarnation.alive)
            except NotStored as error:
                log.warning("%s: %s waits to be counted: %s", self.name, incoming.signal.id, error)
                continue
            if handle.held:
                self._ack(handle)

    # Incarnations

    async def _run(self) -> None:
        failures = 0
        while not self._stopped:
            try:
                await self._incarnate()
                failures = 0
                continue
            except (BrokerError, DriverFailure) as error:
                self.problem = str(error)
            except ConfigError as error:
                self.problem, self.refused = str(error), error
            failures = min(failures + 1, 30)
            self._counters["consumers_failed"] += 1
            self._changed.set()
            log.warning("%s is not served: %s", self.name, self.problem)
            state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
            state.attempt_number = failures
            await asyncio.sleep(self._backoff(state))

    async def _incarnate(self) -> None:
        """Consume on a new channel until it ends. Returns when it had been verified, raises when not."""
        loop = asyncio.get_running_loop()
        connection = await self._link.wait_up(loop.time() + STEP_SECONDS)
        declared = await self._subscriptions.ensure(self.name, connection)
        channel = await self._open(connection)
        incarnation = self.incarnation = Incarnation(channel, declared)
        try:
            await call(channel.basic_qos(prefetch_count=self.prefetch), STEP_SECONDS)
            answer = await call(channel.basic_consume(declared.queue, self._on_message), STEP_SECONDS)
            incarnation.tag = answer.consumer_tag or ""
            await self._subscriptions.verify(declared, connection)
            self.problem = self.refused = None
            self._counters["consumers_started"] += 1
            self.served.set()
            self._changed.set()
            await incarnation.ended.wait()
            log.warning("%s: served again soon: %s", self.name, incarnation.reason)
        finally:
            self.served.clear()
            incarnation.writer.flush()
            incarnation.kill()
            self._buffer.clear()
            self.incarnation = None
            if not channel.is_closed:
                # Closing gives back what is unsettled.
                await close_quietly(channel.close(), STOP_SECONDS)

    async def _open(self, connection: AbstractConnection) -> AbstractChannel:
        try:
            return await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
        except DriverFailure as failure:
            self._link.suspect(connection, failure)
            raise


def _next_attempt(incoming: Incoming, settlement: RetryLater) -> Incoming:
    return Incoming(
        signal=incoming.signal,
        attempt=incoming.attempt + 1,
        crashes=incoming.crashes,
        history=settlement.history,
        malformed=incoming.malformed,
    )
