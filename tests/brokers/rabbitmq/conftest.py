"""Brokers on a virtual host of the test's own."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiormq
import pytest
from aiormq.abc import AbstractChannel

from signalbus.brokers.base import (
    BrokerState,
    Consumer,
    Host,
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
from signalbus.signals import Signal, new_id
from signalbus.testing.proxy import FaultProxy
from tests.support import INTERVAL_SECONDS, eventually

pytestmark = pytest.mark.rabbitmq

ROOT = Path(__file__).parents[3]
TIMEOUT = 15.0
# Faults are over soon, and found soon.
FAST = "heartbeat=4&backoff_cap=1&silent_after=3"


def session() -> SessionInfo:
    """Return a session of its own, also among those of other processes."""
    return SessionInfo(id=new_id(), name="test", host="here", pid=os.getpid(), version="0", started=datetime.now(UTC))


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


class Member:
    """A bus, as brokers know it. ``info`` is its present incarnation."""

    def __init__(self, broker: RabbitBroker) -> None:
        self.broker = broker
        self.info = session()
        self.taken: list[bytes] = []
        self.incarnations = [self.info]

    @property
    def id(self) -> str:
        """The id of the present incarnation."""
        return self.info.id

    def report(self) -> bytes:
        return b"report of " + self.info.id.encode()

    def take(self, message: bytes) -> None:
        self.taken.append(message)

    def renewed(self, session: SessionInfo) -> None:
        self.info = session
        self.incarnations.append(session)


class Peer:
    """Another process at the broker, in a role of `tests.brokers.rabbitmq.peer`. It says a line for each step."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self, word: str, timeout: float = TIMEOUT) -> list[str]:
        """Wait until it says a line that begins with a word, and return the others of it."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout):
            while line := await self._process.stdout.readline():
                first, *rest = line.decode().split()
                if first == word:
                    return rest
        raise AssertionError(f"the peer ended and never said {word!r}")

    def tell(self, line: str = "") -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def send(self, number: signals.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    async def kill(self) -> float:
        """SIGKILL; return the time of that, on the loop's clock."""
        at = asyncio.get_running_loop().time()
        self._process.kill()
        await self._process.wait()
        return at

    async def aclose(self) -> None:
        if self._process.returncode is None:
            await self.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()


class Peers:
    """Starts processes, and ends them at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._started: list[Peer] = []

    async def start(self, role: str, *arguments: object, url: str | None = None) -> Peer:
        """Start one; wait for what it says with `Peer.line`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.brokers.rabbitmq.peer",
            role,
            url or self.url,
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        peer = Peer(process)
        self._started.append(peer)
        return peer

    async def aclose(self) -> None:
        for peer in self._started:
            await peer.aclose()


class Brokers:
    """Opens brokers, and closes them at the end."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: list[RabbitBroker] = []
        self._sinks: list[asyncio.Task[None]] = []

    async def open(self, url: str | None = None, options: str = FAST, host: Host | None = None) -> RabbitBroker:
        broker = broker_for(url or self.url, options)
        self._opened.append(broker)
        await broker.open(session(), TIMEOUT, host)
        return broker

    async def join(self, url: str | None = None, options: str = FAST) -> Member:
        """Open a broker for a bus that remembers what it is told."""
        member = Member(broker_for(url or self.url, options))
        self._opened.append(member.broker)
        await member.broker.open(member.info, TIMEOUT, member)
        return member

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


@pytest.fixture
async def peers(amqp_url: str) -> AsyncIterator[Peers]:
    """Starts other processes on the test's virtual host."""
    peers = Peers(amqp_url)
    yield peers
    await peers.aclose()


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
