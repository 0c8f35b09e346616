"""Brokers on a virtual host of the test's own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import aiormq
import pytest
from aiormq.abc import AbstractChannel

from signalbus.brokers.base import (
    BrokerState,
    Consumer,
    Incoming,
    PublishOutcome,
    PublishResult,
    SubscriptionSpec,
)
from signalbus.brokers.rabbitmq import RabbitBroker
from signalbus.codec import EncodedSignal, decode, encode
from signalbus.config import RabbitUrl, parse_url
from signalbus.delivery import ACK
from signalbus.errors import BrokerError
from signalbus.sessions import SessionInfo
from signalbus.signals import Signal
from signalbus.testing.proxy import FaultProxy
from tests.support import INTERVAL_SECONDS, eventually

pytestmark = pytest.mark.rabbitmq

TIMEOUT = 15.0
# Faults are over soon, and found soon.
FAST = "heartbeat=4&backoff_cap=1&silent_after=3"
_sessions = itertools.count(1)


def session() -> SessionInfo:
    """Return a session of its own."""
    number = next(_sessions)
    started = datetime.now(UTC)
    return SessionInfo(id=f"session-{number}", name="test", host="here", pid=1, version="0", started=started)


def broker_for(url: str, options: str = FAST) -> RabbitBroker:
    """Return a broker, not open."""
    parsed = parse_url(f"{url}?{options}")
    assert isinstance(parsed, RabbitUrl)
    return RabbitBroker(parsed)


def signal(number: int = 0, type: str = "order.placed", *, body: bytes | None = None) -> EncodedSignal:  # noqa: A002
    """Return a signal whose data is a number."""
    return encode(Signal(type=type, source="test", data=number if body is None else body))


def number_of(incoming: Incoming) -> object:
    """Return the data of a signal."""
    return decode(incoming.signal).data


async def publish(broker: RabbitBroker, *signals: EncodedSignal, timeout: float = TIMEOUT) -> Sequence[PublishResult]:
    """Publish once and return the results."""
    return [outcome.result for outcome in await broker.publish(signals, timeout)]


async def publish_until_stored(broker: RabbitBroker, encoded: EncodedSignal, timeout: float = 60.0) -> int:
    """Publish as the bus does: with the same id until it is confirmed. Return the number of tries."""
    tries = 0
    async with asyncio.timeout(timeout):
        while True:
            tries += 1
            try:
                (outcome,) = await broker.publish([encoded], 5.0)
            except BrokerError:
                pass  # nothing was sent
            else:
                assert isinstance(outcome, PublishOutcome)
                if outcome.result is PublishResult.CONFIRMED:
                    return tries
            await asyncio.sleep(0.05)


async def wait_up(broker: RabbitBroker, timeout: float = 30.0) -> None:
    """Wait until the broker is fully there."""
    await eventually(lambda: broker.health().state is BrokerState.UP, timeout, message=str(broker.health()))


async def until(check: Callable[[], Awaitable[bool]], timeout: float = TIMEOUT) -> None:
    """Ask an outside party again and again until it says yes."""
    async with asyncio.timeout(timeout):
        while not await check():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(INTERVAL_SECONDS)


@dataclass
class Sink:
    """Receives and acknowledges in the background; remembers what it got."""

    consumer: Consumer
    act: Callable[[Incoming], Awaitable[bool]] | None = None
    got: list[Incoming] = field(default_factory=list[Incoming])
    settled: int = 0

    async def run(self) -> None:
        while batch := await self.consumer.receive():
            for incoming in batch:
                self.got.append(incoming)
                if self.act is not None:
                    self.settled += await self.act(incoming)
                else:
                    self.settled += await self.consumer.settle(incoming, ACK)

    @property
    def numbers(self) -> list[object]:
        return [number_of(incoming) for incoming in self.got]


async def receive(consumer: Consumer, count: int = 1, timeout: float = TIMEOUT) -> list[Incoming]:
    """Receive exactly so many deliveries."""
    got: list[Incoming] = []
    async with asyncio.timeout(timeout):
        while len(got) < count:
            batch = await consumer.receive()
            assert batch, "the consumer has stopped"
            got.extend(batch)
    assert len(got) == count
    return got


async def nothing_comes(consumer: Consumer, seconds: float = 0.5) -> None:
    """Assert that nothing is delivered for a while."""
    try:
        async with asyncio.timeout(seconds):
            batch = await consumer.receive()
    except TimeoutError:
        return
    raise AssertionError(f"unexpected deliveries: {batch}")


class Brokers:
    """Opens brokers, and closes them at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: list[RabbitBroker] = []
        self._sinks: list[asyncio.Task[None]] = []

    async def open(self, url: str | None = None, options: str = FAST) -> RabbitBroker:
        broker = broker_for(url or self.url, options)
        self._opened.append(broker)
        await broker.open(session(), TIMEOUT)
        return broker

    async def serve(
        self, broker: RabbitBroker, name: str = "work", *patterns: str, prefetch: int = 100, durable: bool = True
    ) -> Consumer:
        await broker.declare(SubscriptionSpec(name=name, patterns=patterns or ("order.*",), durable=durable), TIMEOUT)
        return await broker.consume(name, prefetch, TIMEOUT)

    def sink(self, consumer: Consumer, act: Callable[[Incoming], Awaitable[bool]] | None = None) -> Sink:
        sink = Sink(consumer, act)
        self._sinks.append(asyncio.create_task(sink.run()))
        return sink

    async def aclose(self) -> None:
        await asyncio.gather(*(broker.aclose() for broker in self._opened))
        for task in self._sinks:
            task.cancel()
        done = await asyncio.gather(*self._sinks, return_exceptions=True)
        for end in done:
            if isinstance(end, Exception):
                raise end


@pytest.fixture
async def brokers(amqp_url: str) -> AsyncIterator[Brokers]:
    """Opens brokers on the test's virtual host."""
    brokers = Brokers(amqp_url)
    yield brokers
    await brokers.aclose()


@pytest.fixture(params=["quorum", "classic"])
def queue_type(request: pytest.FixtureRequest) -> str:
    """Both types of durable queues."""
    name: str = request.param
    return name


@pytest.fixture
async def raw(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """A foreign client's channel."""
    async with aiormq.connect(amqp_url) as connection:
        yield await connection.channel()


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy before the broker of `amqp_url`."""
    async with FaultProxy(amqp_url) as proxy:
        yield proxy
