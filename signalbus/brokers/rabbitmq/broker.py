"""The broker on RabbitMQ: puts the parts together.

Three links: signals, copies, requests and notes are published on one, deliveries come on another, with the lease of
the session, and everything that may be refused happens on a third. So a blocked publisher still acknowledges, and a
wrong question closes nobody's channel but its own.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence

from aiormq.abc import AbstractConnection

from ...codec import EncodedSignal
from ...config import RabbitUrl
from ...errors import BrokerUnavailable, BusClosed, ConfigError, NotPermitted
from ...ledger import Batch
from ...sessions import Down, DownReason, SessionInfo
from ..base import (
    Answer,
    BrokerHealth,
    BrokerState,
    Host,
    PublishOutcome,
    PublishResult,
    QueueInfo,
    SessionStatus,
    StoredDeadLetter,
    SubscriptionSpec,
)
from . import tolerant, wire
from .collector import Collector, Store
from .connection import Link, Prepare
from .consumer import Parts, RabbitConsumer
from .control import Control
from .copies import Copies
from .deadletters import read_dead_letters
from .draining import Arrived, Drain, Keep, dead_letters
from .driver import DriverFailure
from .incarnation import Releases
from .lane import Received
from .ledger import LedgerPost
from .monitor import Monitor
from .publishing import Envelope, Publisher
from .registry import Registry
from .replaying import Replaying
from .requests import Requests
from .responder import RabbitResponder
from .society import Society
from .subscriptions import Subscriptions
from .tasks import Keeper
from .topology import Queue, Topology

CLOSE_SECONDS = 4.0
DEAD_TOGETHER, WORDS_TOGETHER = 16, 256  # of one transaction of a store; dead letters may be large


class RabbitBroker:
    """Implements `Broker` on RabbitMQ 3.10 to 4.x."""

    def __init__(self, url: RabbitUrl) -> None:
        self._url = url
        self._counters: Counter[str] = Counter()
        self._keeper = Keeper(self._counters)
        self._topology = Topology(url.prefix, url.queue_type)
        self._changed = asyncio.Event()
        self._control = Control(self._topology, self._counters)
        self._registry = Registry(self._topology)
        self._control_link = self._link("control", self._prepare_control)
        self._control.attach(self._control_link)
        self._publish_link = self._link("publish", self._prepare_publishing)
        self._consume_link = self._link("consume", self._prepare_consuming)
        self._links = (self._control_link, self._publish_link, self._consume_link)
        self._subscriptions = Subscriptions(self._control, self._registry, self._consume_link)
        self._signals = Publisher(self._publish_link, self._subscriptions.restore)
        self._copying = Publisher(self._publish_link, self._control.repair)
        self._copies = Copies(self._copying, self._control)
        self._monitor = Monitor(self._subscriptions, self._control, self._counters, url.silent_after)
        self._parts = Parts(
            link=self._consume_link,
            subscriptions=self._subscriptions,
            copies=self._copies,
            keeper=self._keeper,
            releases=Releases(),
            counters=self._counters,
            backoff_cap=url.backoff_cap,
        )
        self._noting = Publisher(self._publish_link, self._control.repair)
        self._recording = Publisher(self._publish_link, self._control.repair)
        self._ledger = LedgerPost(self._recording, self._topology, self._counters)
        self._returning = Publisher(self._publish_link, self._control.repair)
        self._replaying = Replaying(self._returning, self._topology)
        self._society = Society(
            url,
            self._control,
            self._registry,
            self._subscriptions,
            self._noting,
            self._consume_link,
            self._counters,
            self._changed.set,
        )
        self._requests = Requests(
            url,
            self._control,
            self._society,
            self._keeper,
            self._publish_link,
            self._consume_link,
            self._counters,
        )
        self._opened = False
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"RabbitBroker({self._control_link.server}, prefix={self._url.prefix!r})"

    # Life

    async def open(self, session: SessionInfo, timeout: float, host: Host | None = None) -> None:
        """Connect all links, make the base topology, and be alive to others."""
        if self._opened or self._closing is not None:
            raise ConfigError("a broker is opened once; make a new one")
        tolerant.install()
        self._opened = True
        self._subscriptions.session = session.id
        for link in self._links:
            link.name = f"{session.name} {session.id}"
            self._keeper.keep(f"{link.role} link", link.run)
        self._society.begin(session, host, self._keeper)
        try:
            async with asyncio.timeout(timeout):
                await self._wait_ready()
        except TimeoutError as error:
            await self.aclose()
            raise BrokerUnavailable(self._unreachable(timeout)) from error
        except BaseException:
            await self.aclose()
            raise
        self._keeper.keep("monitor", self._monitor.run)
        self._keeper.keep("ledger", self._ledger.run)

    async def aclose(self, reason: DownReason = DownReason.NORMAL) -> None:
        """Stop consumers and responders, say goodbye, close channels and connections."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(reason), name="signalbus rabbitmq close")
        # Shielded: whoever closes second waits for the same end, and cancelling one closer leaves nothing half open.
        await asyncio.shield(self._closing)

    async def _close(self, reason: DownReason) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                closing = [consumer.aclose() for consumer in self._subscriptions.consumers]
                await asyncio.gather(*closing, self._requests.close_responders(), return_exceptions=True)
                # Nobody may be told that we are gone while we hold deliveries.
                await self._society.aclose(reason)
                publishers = (self._signals, self._copying, self._noting, self._returning)
                closing = [self._ledger.aclose(), *(publisher.aclose() for publisher in publishers)]
                await asyncio.gather(*closing, self._requests.aclose(), return_exceptions=True)
        except TimeoutError:
            pass  # a broker that does not answer: its connections are dropped below
        finally:
            await self._keeper.aclose()

    async def _wait_ready(self) -> None:
        while True:
            self._changed.clear()
            for link in self._links:
                if link.problem is not None and link.problem.refused:
                    raise NotPermitted(f"RabbitMQ refuses us at {link.problem}; check user, password and vhost")
            if all(link.connection is not None for link in self._links) and self._alive_or_cannot():
                break
            await self._changed.wait()
        if (refused := self._refused()) is not None:
            raise ConfigError(
                f"RabbitMQ at {self._control_link.server} refuses our exchanges and queues: {refused}; "
                f"the user needs all rights on names that begin with {self._url.prefix!r}, and to write to the default "
                "exchange (amq.default); existing ones must have been made by signalbus with the same settings"
            )

    def _alive_or_cannot(self) -> bool:
        """Whether others see that we live. During an alarm, or while it is refused, that has to wait."""
        held = self._society.membership.held.is_set()
        return held or self._publish_link.blocked or self._refused() is not None

    def _refused(self) -> str | None:
        """Return what the broker refuses us of what every session needs."""
        return self._control.refused or self._society.membership.refused or self._noting.refused

    def _unreachable(self, timeout: float) -> str:
        problems = {str(link.problem) for link in self._links if link.problem is not None}
        cause = "; ".join(sorted(problems)) or f"{self._control_link.server}: no answer"
        return (
            f"RabbitMQ cannot be reached within {timeout:.1f} s: {cause}. "
            "Is it running, and are host, port and TLS settings of SIGNALBUS_URL right?"
        )

    # Subscriptions

    async def declare(self, subscription: SubscriptionSpec, timeout: float) -> None:
        """Make a subscription exist, with these patterns."""
        self._check_open()
        await self._subscriptions.declare(subscription, timeout)

    async def delete(self, name: str, timeout: float) -> None:
        """Delete a subscription with everything in its queue."""
        self._check_open()
        await self._subscriptions.delete(name, timeout)

    async def consume(self, name: str, prefetch: int, timeout: float) -> RabbitConsumer:
        """Start to serve a declared subscription."""
        self._check_open()
        consumer = RabbitConsumer(name, prefetch, self._parts)
        self._subscriptions.consumers.add(consumer)
        try:
            await consumer.wait_served(timeout)
        except BaseException:
            await consumer.aclose()
            raise
        return consumer

    async def queues(self, timeout: float) -> Sequence[QueueInfo]:
        """Return the subscriptions with what their queues hold."""
        self._check_open()
        return await self._subscriptions.queues(timeout)

    async def dead_letters(self, limit: int, timeout: float) -> Sequence[StoredDeadLetter]:
        """Return up to ``limit`` dead letters, oldest first: those that no router has taken yet."""
        self._check_open()
        try:
            async with asyncio.timeout(timeout):
                connection = await self._control_link.wait_up(asyncio.get_running_loop().time() + timeout)
                return await read_dead_letters(connection, self._topology, limit)
        except DriverFailure as failure:
            raise self._control.error(failure) from failure
        except TimeoutError as error:
            raise BrokerUnavailable(
                self._control_link.trouble(f"dead letters not read within {timeout:.1f} s")
            ) from error

    async def audience(self, signal_type: str, timeout: float) -> Sequence[str]:
        """Return the names of the subscriptions that match a type now, durable and temporary."""
        self._check_open()
        return await self._society.audience(signal_type, timeout)

    # Sessions

    async def watch(self, session: str, timeout: float) -> asyncio.Future[Down]:
        """Watch a session until its end."""
        self._check_open()
        return await self._society.watch(session, timeout)

    async def watch_all(self, ended: Callable[[Down], None], timeout: float) -> None:
        """Call ``ended`` for the end of every session but ours."""
        self._check_open()
        await self._society.watch_all(ended, timeout)

    async def sessions(self, timeout: float) -> Sequence[SessionStatus]:
        """Return the living sessions, with what each says of itself."""
        self._check_open()
        return await self._society.sessions(timeout)

    async def send(self, session: str, message: bytes) -> None:
        """Send a message to a session."""
        self._check_open()
        await self._society.send(session, message)

    # Requests

    async def request(self, request: EncodedSignal, timeout: float) -> Answer:
        """Send a request to one of the responders to its type, and wait for the answer."""
        self._check_open()
        return await self._requests.request(request, timeout)

    async def respond(self, request_type: str, concurrency: int, backlog: int, timeout: float) -> RabbitResponder:
        """Start to respond to a type."""
        self._check_open()
        return await self._requests.respond(request_type, concurrency, backlog, timeout)

    # Publishing

    async def publish(self, batch: Sequence[EncodedSignal], timeout: float) -> Sequence[PublishOutcome]:
        """Store a batch, pipelined."""
        self._check_open()
        seconds = int(time.time())
        if len(batch) == 1:
            envelope = self._envelope(batch[0], seconds)
            if isinstance(envelope, PublishOutcome):
                return (envelope,)
            return (await self._signals.publish_one(envelope, timeout),)
        prepared = [self._envelope(signal, seconds) for signal in batch]
        envelopes = [item for item in prepared if not isinstance(item, PublishOutcome)]
        outcomes = iter(await self._signals.publish(envelopes, timeout) if envelopes else ())
        return [item if isinstance(item, PublishOutcome) else next(outcomes) for item in prepared]

    def _envelope(self, signal: EncodedSignal, seconds: int) -> Envelope | PublishOutcome:
        problem = wire.problem_of(signal)
        if problem is not None:
            return PublishOutcome(PublishResult.REFUSED, problem)
        properties = wire.persistent(signal, self._signals.next_id(), seconds)
        return Envelope(self._topology.signals, signal.type, properties, signal.body)

    def append(self, batches: Sequence[Batch]) -> None:
        """Take facts for the ledger."""
        if self._opened and self._closing is None:
            self._ledger.append(batches)

    def collector(self, store: Store, drain_seconds: float = 10.0) -> Collector:
        """Return what stores the facts of all buses, in order of arrival, while it runs; for a router.

        ``store`` blocks, and is called in a thread with some batches, perhaps with the same ones again. It has to be
        idempotent, and durable when it returns; while it raises `BrokerError`, facts wait at RabbitMQ. Who stops it
        waits up to ``drain_seconds`` for what is just being stored.
        """
        self._check_open()
        return Collector(
            self._consume_link,
            self._topology,
            self._recording,
            self._counters,
            store,
            drain_seconds,
            self._url.backoff_cap,
        )

    # Dead letters, for a router

    async def take_dead_letters(self, store: Callable[[Sequence[Arrived]], object]) -> None:
        """Store the dead letters of all buses, oldest first, until this is cancelled. For ``store`` see `collector`."""
        self._check_open()
        keep = dead_letters(self._topology, store)
        await self._drain(self._topology.dead_letters(), keep, DEAD_TOGETHER).run(self._counters)

    async def take_words(self, store: Callable[[Sequence[bytes]], object], listening: asyncio.Event) -> None:
        """Store what subscribers say of dead letters that were sent, until this is cancelled.

        ``listening`` is set once nothing gets lost any more. For ``store`` see `collector`.
        """
        self._check_open()

        def keep(messages: Sequence[Received]) -> object:
            return store([message.body for message in messages])

        await self._drain(self._topology.words(), keep, WORDS_TOGETHER, listening).run(self._counters)

    async def return_dead_letters(
        self, letters: Sequence[tuple[str, EncodedSignal]], timeout: float
    ) -> Sequence[PublishOutcome]:
        """Send dead letters back to their subscriptions, with the same ids, and to nobody else; see `Replaying.send`.

        One try. What becomes of them is told to `take_words`, or comes to `take_dead_letters`.
        """
        self._check_open()
        return await self._replaying.send(letters, timeout)

    async def has_queue(self, subscription: str, timeout: float) -> bool:
        """Tell whether a durable subscription has a queue, so whether what was sent to it may still be settled."""
        self._check_open()
        return await self._control.exists(self._replaying.queue(subscription), timeout)

    def _drain(self, queue: Queue, keep: Keep, together: int, drained: asyncio.Event | None = None) -> Drain:
        link, control, cap = self._consume_link, self._control, self._url.backoff_cap
        return Drain(link, control, queue, keep, together=together, backoff_cap=cap, drained=drained)

    # State

    def health(self) -> BrokerHealth:
        """Return where the connections stand."""
        state, reason = self._state()
        warnings: list[str] = []
        if self._registry.unavailable is not None:
            warnings.append(
                "no streams, so earlier patterns of a subscription are not known and stay bound: "
                f"{self._registry.unavailable}"
            )
        warnings += [
            f"subscription {consumer.name!r} is not served: {consumer.problem}"
            for consumer in self._subscriptions.consumers
            if consumer.problem is not None and not consumer.served.is_set()
        ]
        warnings += [
            f"requests {responder.request_type!r} do not reach us: {responder.problem}"
            for responder in self._requests.responders
            if responder.problem is not None and not responder.served.is_set()
        ]
        if self._ledger.trouble:
            warnings.append(self._ledger.trouble)
        if self._keeper.failure is not None:
            warnings.append(f"a part failed and was started again: {self._keeper.failure}")
        counters = dict(self._counters)
        counters["reconnects"] = max(0, counters.get("connects", 0) - len(self._links))
        return BrokerHealth(state=state, reason=reason, counters=counters, warnings=tuple(warnings))

    def _state(self) -> tuple[BrokerState, str]:
        if not self._opened or self._closing is not None:
            return BrokerState.CLOSED, "not open"
        for link in self._links:
            if link.problem is not None and link.problem.refused:
                return BrokerState.DEGRADED, str(link.problem)
        for link in self._links:
            if link.connection is None:
                return BrokerState.CONNECTING, str(link.problem or f"{link.server}: connecting")
        if (reason := self._refused()) is not None:
            return BrokerState.DEGRADED, reason
        for refusal in (
            self._signals.refused,
            self._copying.refused,
            *(consumer.refused for consumer in self._subscriptions.consumers),
            *(responder.refused for responder in self._requests.responders),
        ):
            if refusal is not None:
                return BrokerState.DEGRADED, str(refusal)
        if self._publish_link.blocked:
            return BrokerState.BLOCKED, "RabbitMQ has blocked publishing: memory or disk alarm"
        return BrokerState.UP, ""

    def _check_open(self) -> None:
        if not self._opened or self._closing is not None:
            raise BusClosed("the broker is not open")

    def _link(self, role: str, prepare: Prepare) -> Link:
        return Link(self._url, role, self._counters, self._changed.set, prepare)

    async def _prepare_control(self, connection: AbstractConnection) -> None:
        await self._control.prepare(connection)
        if self._control.refused is None:
            await self._registry.prepare(connection)

    async def _prepare_publishing(self, connection: AbstractConnection) -> None:
        await self._signals.prepare(connection)
        await self._copying.prepare(connection)
        await self._noting.prepare(connection)

    async def _prepare_consuming(self, connection: AbstractConnection) -> None:
        await self._society.prepare(connection)
        await self._subscriptions.prepare(connection)
