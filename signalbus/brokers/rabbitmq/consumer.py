"""Serving one subscription: a consumer that is made again after every loss."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aiormq.abc import AbstractChannel, AbstractConnection

from ...delivery import Ack, DeadLetter, Release, RetryLater, Settlement
from ...errors import BrokerError, BrokerUnavailable, ConfigError
from ..base import Incoming
from . import delays
from .connection import Backoff, Link
from .copies import Copies, NotStored
from .deliveries import consume
from .driver import DriverFailure, call, close_quietly
from .incarnation import Handle, Incarnation, Releases
from .intake import Intake
from .lane import Received
from .subscriptions import Subscriptions
from .tasks import Keeper, end

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
STOP_SECONDS = 2.0
FIRST_PAUSE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the consumers of a broker share."""

    link: Link
    subscriptions: Subscriptions
    copies: Copies
    keeper: Keeper
    releases: Releases
    counters: Counter[str]
    backoff_cap: float


class RabbitConsumer:
    """Implements `Consumer`."""

    def __init__(self, name: str, prefetch: int, parts: Parts) -> None:
        self.name = name
        self.prefetch = prefetch
        self.stopped = asyncio.Event()  # takes nothing more
        self.refused: ConfigError | None = None  # while the broker refuses us
        self.incarnation: Incarnation | None = None
        self.served = asyncio.Event()  # the broker counts us
        self.problem: str | None = None  # why it does not
        self._parts = parts
        self._counters = parts.counters
        self._intake = Intake(name, parts.copies, parts.releases)
        self._backoff = Backoff(FIRST_PAUSE, parts.backoff_cap)
        self._changed = asyncio.Event()
        self._stopping = asyncio.Lock()
        self._task = parts.keeper.keep(f"consumer of {name}", self._run)

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
            reason = self.problem or self._parts.link.trouble("no answer")
            raise BrokerUnavailable(f"subscription {self.name!r} is not served: {reason}") from error

    def recycle(self, reason: str) -> None:
        """Give the present incarnation up and make a new one."""
        if self.incarnation is not None:
            self.incarnation.end(reason)

    def vanish(self) -> None:
        """End the stream: the subscription is deleted."""
        self.stopped.set()
        self._intake.close()

    # Implements Consumer

    async def receive(self) -> Sequence[Incoming]:
        """Wait for deliveries."""
        return await self._intake.receive()

    async def settle(self, incoming: Incoming, settlement: Settlement) -> bool:
        """Carry a settlement out."""
        handle = incoming.handle
        if not isinstance(handle, Handle) or not handle.held:
            self._counters["settles_lost"] += 1
            return False
        match settlement:
            case Ack():
                handle.incarnation.ack(handle)
                return True
            case Release():
                handle.incarnation.release(handle)
                return True
            case RetryLater() if self._retry_here(incoming, handle, settlement):
                return True
            case RetryLater() | DeadLetter():
                return await self._replace(incoming, handle, settlement)

    async def stop(self) -> None:
        """Take nothing more."""
        async with self._stopping:
            if self.stopped.is_set():
                return
            self.stopped.set()
            incarnation = self.incarnation
            if incarnation is not None and incarnation.alive and incarnation.tag:
                try:
                    await call(incarnation.channel.basic_cancel(incarnation.tag), STOP_SECONDS)
                except DriverFailure as failure:
                    # Not knowing whether more comes, nothing of it may stay with us.
                    incarnation.end(f"not cancelled: {failure.reason}")
            self._intake.close()
            if incarnation is not None and incarnation.alive:
                await self._move_waiting(incarnation)

    async def aclose(self) -> None:
        """Stop, and give back everything unsettled."""
        await self.stop()
        self._parts.subscriptions.consumers.discard(self)
        self._intake.cancel()
        incarnation = self.incarnation
        if incarnation is not None and incarnation.alive:
            for _, handle in incarnation.held():
                incarnation.release(handle)
            await incarnation.drain(STOP_SECONDS)
            incarnation.end("closed")
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
        await end(self._task)

    # Settling

    def _retry_here(self, incoming: Incoming, handle: Handle, settlement: RetryLater) -> bool:
        """Hold a delivery for a short delay, if we may: its copy would take as long to make."""
        seconds = settlement.delay.total_seconds()
        if seconds >= delays.SHORTEST or self.stopped.is_set():
            return False
        handle.held = False
        following = _next_attempt(incoming, settlement)
        again = handle.incarnation.hold(following, handle.tag, handle.message_id)
        self._intake.wait_here(following, again, max(seconds, 0.0))
        return True

    async def _replace(self, incoming: Incoming, handle: Handle, settlement: RetryLater | DeadLetter) -> bool:
        """Store a copy, then acknowledge the original."""
        incarnation = handle.incarnation
        handle.held = False  # nobody else may settle it meanwhile
        try:
            await self._store(incoming, incarnation, settlement)
        except NotStored as error:
            if incarnation.alive:
                raise BrokerUnavailable(f"signal {incoming.signal.id} cannot be put aside: {error}") from error
        finally:
            handle.held = incarnation.alive
        if not incarnation.alive:
            # The original comes again. If the copy is stored as well, there are two.
            self._counters["settles_lost"] += 1
            return False
        incarnation.ack(handle)
        return True

    async def _store(self, incoming: Incoming, incarnation: Incarnation, settlement: RetryLater | DeadLetter) -> None:
        def wanted() -> bool:
            return incarnation.alive

        declared, copies = incarnation.declared, self._parts.copies
        match settlement:
            case DeadLetter():
                await copies.dead_letter(incoming, settlement, self.name, declared.queue, wanted)
            case RetryLater():
                plan = delays.plan(max(settlement.delay.total_seconds(), delays.SHORTEST))
                await copies.delay(_next_attempt(incoming, settlement), plan, declared.return_key, wanted)

    async def _move_waiting(self, incarnation: Incarnation) -> None:
        moving = self._intake.move_waiting(incarnation)
        if not moving:
            return
        await asyncio.wait([task for _, task in moving], timeout=STOP_SECONDS)
        for handle, task in moving:
            if not task.done():
                task.cancel()
                if handle.held:
                    incarnation.release(handle)  # its attempt is forgotten, it is not

    # Incarnations

    async def _run(self) -> None:
        while not self.stopped.is_set():
            try:
                await self._incarnate()
            except (BrokerError, DriverFailure) as error:
                self.problem = str(error)
            except ConfigError as error:
                self.problem, self.refused = str(error), error
            if self.stopped.is_set():
                return
            self._counters["consumers_lost"] += 1
            self._changed.set()
            log.warning("%s is not served for now: %s", self.name, self.problem)
            await asyncio.sleep(self._backoff.next())

    async def _incarnate(self) -> None:
        """Consume on a new channel, and wait until that ends."""
        parts = self._parts
        clock = asyncio.get_running_loop().time
        connection = await parts.link.wait_up(clock() + STEP_SECONDS)
        declared = await parts.subscriptions.ensure(self.name, connection)
        channel = await self._open(connection)
        incarnation = self.incarnation = Incarnation(channel, declared, parts.releases)

        def take(message: Received) -> None:
            if incarnation.alive:
                self._intake.take(message, incarnation)

        try:
            await call(channel.basic_qos(prefetch_count=self.prefetch), STEP_SECONDS)
            if self.stopped.is_set():
                return
            incarnation.tag = await consume(channel, declared.queue, take)
            await parts.subscriptions.verify(declared, connection)
            if self.stopped.is_set():
                return
            self.problem = self.refused = None
            self._counters["consumers_started"] += 1
            self.served.set()
            self._changed.set()
            self._backoff.began(clock())
            await incarnation.ended.wait()
            self._backoff.ended(clock())
            self.problem = incarnation.reason
        finally:
            self.served.clear()
            incarnation.kill()
            self._intake.clear()
            self.incarnation = None
            if not channel.is_closed:
                # Closing gives back what is unsettled.
                await close_quietly(channel.close(), STOP_SECONDS)

    async def _open(self, connection: AbstractConnection) -> AbstractChannel:
        try:
            return await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
        except DriverFailure as failure:
            self._parts.link.suspect(connection, failure)
            raise


def _next_attempt(incoming: Incoming, settlement: RetryLater) -> Incoming:
    return Incoming(
        signal=incoming.signal,
        attempt=incoming.attempt + 1,
        crashes=incoming.crashes,
        history=settlement.history,
        malformed=incoming.malformed,
    )
