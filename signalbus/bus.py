"""The bus: what a program holds. A small composition of publisher, subscribers, responders, watchers and a broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from types import TracebackType
from typing import Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack, overload

from . import brokers, codec, patterns
from .bookkeeper import Bookkeeper
from .brokers.base import Broker, BrokerHealth, SubscriptionSpec
from .children import ChildInfo
from .config import Settings, masked, parse_url
from .errors import AudienceMismatch, BusClosed, ConfigError, Escalated, InvalidSignal, NotSettled
from .handlers import CAUSE, compile_handler
from .ledger import Payload, Recorder
from .liveness import Monitor, SubscriptionStatus, Watchers, subscription_statuses
from .membership import Member
from .policy import RetryPolicy
from .publisher import Publisher, PublisherStats, Unrouted
from .receipts import Receipt
from .requests import Requester, RequesterStats, read_reply
from .responder import Endpoint, ResponderOptions, ResponderStats, RespondingService, RespondKeywords
from .services import Services, Surroundings
from .sessions import Down, DownReason, SessionInfo
from .signals import ExtensionValue, Signal, utc_now
from .subscriber import SubscribeKeywords, SubscriberOptions, SubscriptionStats
from .subscription import Subscription, SubscriptionService
from .supervision import Supervisor
from .telemetry import Telemetry

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[[Down], object])

Until = Literal["stored", "acked"]


class PublishKeywords(TypedDict, total=False):
    """The keyword arguments of `Bus.publish` that say how, not what."""

    timeout: float | None
    unroutable: Unrouted
    until: Until
    expect: int | None


DEFAULT_RETRY = RetryPolicy()
_NONE = (None,) * 6  # of the optional attributes of a signal


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStats:
    """What a bus did since it was created, and the health of its broker.

    ``children``: what its supervisor keeps running now, a serving loop for each subscription and each responder.
    """

    publisher: PublisherStats
    subscriptions: dict[str, SubscriptionStats]
    requests: RequesterStats
    responders: dict[str, ResponderStats]
    broker: BrokerHealth
    children: tuple[ChildInfo, ...]


class Bus:
    """Publishes signals and serves subscriptions over one broker.

    ``url`` defaults to ``SIGNALBUS_URL``, else ``sqlite:///signalbus.db``. ``name`` is the source of signals that
    name none. Times are in seconds; ``drain_timeout`` is how long closing waits for running handlers. ``ledger``: what
    is recorded of signals, ``all``, ``failures`` or ``off``.

    Use as ``async with bus:``. If a part of it fails again and again, the body is cancelled and `Escalated` raised,
    as a task group does. Raises `ConfigError` for settings that cannot work.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str | None = None,
        max_signal_bytes: int | None = None,
        publish_timeout: float | None = None,
        request_timeout: float | None = None,
        connect_timeout: float | None = None,
        drain_timeout: float | None = None,
        ledger: str | None = None,
    ) -> None:
        self.settings = Settings.read(
            url=url,
            name=name,
            max_signal_bytes=max_signal_bytes,
            publish_timeout=publish_timeout,
            request_timeout=request_timeout,
            connect_timeout=connect_timeout,
            drain_timeout=drain_timeout,
            ledger=ledger,
        )
        self._recorder = Recorder(None, self.settings.recording)
        self._broker: Broker = brokers.connect(parse_url(self.settings.url))
        self._telemetry = Telemetry(client_id=self.settings.name)
        self._bookkeeper = Bookkeeper(self._recorder, self._broker)
        self._publisher = Publisher(self._broker, self.settings.max_signal_bytes, self._telemetry, self._recorder)
        self._requester = Requester(self._broker, self._telemetry, self._recorder)
        self._watchers = Watchers()
        self._services: Services[SubscriptionService] = Services()
        self._subscriptions: dict[str, Subscription[..., object]] = {}
        self._responders: Services[RespondingService] = Services()
        self._supervisor = Supervisor(self.settings.name, self._escalate)
        self._member = Member(
            self.settings.name,
            self._broker,
            self._services,
            self._responders,
            self._recorder,
            self._publisher.stats,
        )
        self._surroundings: Surroundings | None = None  # while open
        self._closing: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[object] | None = None
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()

    # Opening and closing

    async def __aenter__(self) -> Self:
        await self.open()
        self._owner = asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        owner, self._owner = self._owner, None
        await self.aclose()
        if self._failure is not None:
            if owner is not None and isinstance(error, asyncio.CancelledError):
                owner.uncancel()
            raise Escalated(f"{self!r} was given up: {self._failure}") from self._failure

    async def open(self) -> None:
        """Connect, declare the subscriptions and serve them; returns when all of them are served.

        Raises `BrokerUnavailable`, `StorageError` or `ConfigError`, and `BusClosed` if it was closed before:
        a bus is opened once.
        """
        if self._member.joined:
            raise BusClosed(f"{self!r} was opened before; make a new Bus")
        session = self._member.join()
        try:
            await self._broker.open(session, self.settings.connect_timeout, self._member)
            self._recorder.session_up(self._member.session)
            self._bookkeeper.begin()
            surroundings = self._surroundings = Surroundings(
                broker=self._broker,
                session=lambda: self._member.session.id,
                supervisor=self._supervisor,
                tell=self._member.tell,
                telemetry=self._telemetry,
                max_signal_bytes=self.settings.max_signal_bytes,
                timeout=self.settings.connect_timeout,
                drain_timeout=self.settings.drain_timeout,
                recorder=self._recorder,
            )
            if self._watchers.wanted:
                await self._broker.watch_all(self._watchers.ended, self.settings.connect_timeout)
            await asyncio.gather(self._services.start(surroundings), self._responders.start(surroundings))
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Stop taking deliveries, let handlers end, settle, disconnect. Idempotent; concurrent calls wait for one."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"{self.settings.name}/close")
        await asyncio.shield(self._closing)

    async def wait_failed(self) -> None:
        """Wait until the bus gives up; raises `Escalated`. For programs that only serve."""
        await self._failed.wait()
        raise Escalated(f"{self!r} was given up: {self._failure}") from self._failure

    async def _close(self) -> None:
        # Handlers that are still running may publish and request; so responders end last.
        await self._services.stop()
        await self._responders.stop()
        await self._watchers.aclose(self.settings.drain_timeout)
        await self._member.aclose()
        self._surroundings = None
        await self._supervisor.aclose()
        await self._telemetry.aclose()
        reason = DownReason.NORMAL if self._failure is None else DownReason.KILLED_BY_SUPERVISOR
        if self._member.joined:
            session = self._member.session
            self._recorder.session_down(Down(session=session.id, reason=reason, at=utc_now(), name=session.name))
        self._bookkeeper.close()
        await self._broker.aclose(reason)

    def _escalate(self, error: BaseException) -> None:
        log.critical("%r failed too often; giving up", self, exc_info=error)
        self._failure = error
        self._failed.set()
        if self._owner is not None:
            self._owner.cancel()

    def _require_open(self) -> None:
        if self._surroundings is None:
            state = "closed" if self._closing is not None else "not open"
            raise BusClosed(f"{self!r} is {state}; use it inside 'async with bus:'")

    # Publishing

    @overload
    async def publish(self, signal: Signal, /, **options: Unpack[PublishKeywords]) -> Receipt: ...

    @overload
    async def publish(
        self,
        type: str,
        data: object = None,
        /,
        *,
        subject: str | None = None,
        source: str | None = None,
        datacontenttype: str | None = None,
        correlationid: str | None = None,
        causationid: str | None = None,
        extensions: dict[str, ExtensionValue] | None = None,
        **options: Unpack[PublishKeywords],
    ) -> Receipt: ...

    async def publish(
        self,
        signal: Signal | str,
        data: object = None,
        /,
        *,
        subject: str | None = None,
        source: str | None = None,
        datacontenttype: str | None = None,
        correlationid: str | None = None,
        causationid: str | None = None,
        extensions: dict[str, ExtensionValue] | None = None,
        timeout: float | None = None,
        unroutable: Unrouted = "raise",
        until: Until = "stored",
        expect: int | None = None,
    ) -> Receipt:
        """Publish a signal, or a type with data; returns when it is stored for every matching subscription.

        ``timeout`` in seconds, by default ``publish_timeout``; a lost connection is waited out within it, and the
        signal sent again with the same id. With ``unroutable="ignore"`` having no subscription is fine.

        ``until="acked"`` returns when every subscription that matched just before has settled it: the receipt names
        each with its outcome, acked or dead. A subscription that is declared in that very moment may get the signal
        and not be waited for. ``expect``: how many subscriptions have to match; otherwise nothing is sent.

        Raises `Unroutable`, `InvalidSignal`, `AudienceMismatch` (nothing was sent), `BrokerUnavailable` and
        `Backpressure` (not stored), `PublishUnconfirmed` (outcome unknown, safe to repeat with the same signal),
        `NotSettled` (stored, and not settled in time; with what is known), `BusClosed`.
        """
        optional = (subject, source, datacontenttype, correlationid, causationid, extensions)
        if not isinstance(signal, str):
            if data is not None:
                raise InvalidSignal("data is given twice: it belongs into the Signal")
            encoded, payload = self._encode(signal)
        elif optional == _NONE:
            encoded, payload = self._encode_plain(signal, data)
        else:
            encoded, payload = self._encode(
                Signal(
                    type=signal,
                    data=data,
                    source=source or self.settings.name,
                    subject=subject,
                    datacontenttype=datacontenttype,
                    correlationid=correlationid,
                    causationid=causationid,
                    extensions=extensions or {},
                )
            )
        if self._surroundings is None or self._services.starting:
            await self._ready_to_publish()
        seconds = self.settings.publish_timeout if timeout is None else timeout
        if until == "stored" and expect is None:
            return await self._publisher.publish(encoded, seconds, unroutable, payload)
        return await self._publish_to_audience(encoded, payload, seconds, unroutable, until, expect)

    async def publish_many(
        self,
        signals: Iterable[Signal | tuple[str, object]],
        *,
        timeout: float | None = None,
        unroutable: Unrouted = "raise",
    ) -> list[Receipt]:
        """Publish many signals in order, pipelined; returns one receipt each. Not atomic.

        An item is a `Signal` or a tuple of type and data. ``timeout`` in seconds is for all of them.
        All are checked before the first is sent (`InvalidSignal`); if some cannot be stored, `BatchError` says which.
        """
        encoded: list[codec.EncodedSignal] = []
        payloads: list[Payload | None] = []
        for item in signals:
            signal, payload = self._encode(item) if isinstance(item, Signal) else self._encode_plain(*item)
            encoded.append(signal)
            payloads.append(payload)
        await self._ready_to_publish()
        seconds = self.settings.publish_timeout if timeout is None else timeout
        return await self._publisher.publish_many(encoded, seconds, unroutable, payloads)

    async def _publish_to_audience(
        self,
        encoded: codec.EncodedSignal,
        payload: Payload | None,
        timeout: float,
        unroutable: Unrouted,
        until: Until,
        expect: int | None,
    ) -> Receipt:
        """Publish knowing who gets it; with ``until="acked"``, wait for what becomes of it there."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        audience = await self._broker.audience(encoded.type, timeout)
        if expect is not None and len(audience) != expect:
            raise AudienceMismatch(encoded.type, expect, audience)
        if until == "stored":
            return await self._publisher.publish(encoded, deadline - clock(), unroutable, payload)
        addressed = codec.with_headers(encoded, receiptto=self._member.session.id)
        awaited = self._member.acknowledgements.expect(encoded.id, audience)
        try:
            receipt = await self._publisher.publish(addressed, deadline - clock(), unroutable, payload)
            settled = await awaited.wait(deadline - clock())
        finally:
            self._member.acknowledgements.forget(encoded.id, awaited)
        receipt = replace(receipt, subscriptions=awaited.results())
        if not settled:
            raise NotSettled(receipt, timeout)
        return receipt

    def _encode(self, signal: Signal) -> tuple[codec.EncodedSignal, Payload | None]:
        encoded = codec.encode(signal, default_source=self.settings.name, cause=CAUSE.get())
        return encoded, self._recorder.payload(encoded.body, encoded.content_type, signal.data)

    def _encode_plain(self, signal_type: str, data: object) -> tuple[codec.EncodedSignal, Payload | None]:
        encoded = codec.encode_plain(signal_type, data, self.settings.name, CAUSE.get())
        return encoded, self._recorder.payload(encoded.body, encoded.content_type, data)

    async def _ready_to_publish(self) -> None:
        self._require_open()
        # Subscribed a moment ago at run time: what is published next should reach it.
        if self._services.starting:
            await self._services.wait_started()
            self._require_open()

    # Requesting and responding

    @overload
    async def request(
        self,
        signal: Signal | str,
        data: object = None,
        /,
        *,
        reply: type[T],
        timeout: float | None = None,
    ) -> T: ...

    @overload
    async def request(
        self,
        signal: Signal | str,
        data: object = None,
        /,
        *,
        reply: None = None,
        timeout: float | None = None,
    ) -> object: ...

    async def request(
        self,
        signal: Signal | str,
        data: object = None,
        /,
        *,
        reply: type[T] | None = None,
        timeout: float | None = None,
    ) -> T | object:
        """Send a request, a type with data or a whole signal, to one of those who respond to it; return the reply.

        ``reply``: what the reply is validated as (model, dataclass, TypedDict, builtin, ``bytes``); decoded JSON if
        none is given. ``timeout`` in seconds, by default ``request_timeout``; the responder knows it, and stops then.

        Raises, as early as it can be known: `NoResponder` and `Overloaded` (not run), `RemoteError` (its handler
        raised), `ResponderDown`, `ReplyLost` and `RequestTimeout` (it may have run), `InvalidSignal`,
        `BrokerUnavailable` and `Backpressure` (not sent), `DecodeError` (the reply is no ``reply``), `BusClosed`.
        """
        seconds = self.settings.request_timeout if timeout is None else timeout
        encoded, payload = self._encode(signal) if isinstance(signal, Signal) else self._encode_plain(signal, data)
        self._publisher.check_size(encoded)
        self._require_open()
        if self._responders.starting:
            await self._responders.wait_started()  # responded to a moment ago, by ourselves
            self._require_open()
        return read_reply(await self._requester.request(encoded, seconds, payload), reply)

    @overload
    def respond(
        self,
        request_type: str,
        /,
        **options: Unpack[RespondKeywords],
    ) -> Callable[[Callable[P, R]], Endpoint[P, R]]: ...

    @overload
    def respond(
        self,
        request_type: str,
        handler: Callable[P, R],
        /,
        **options: Unpack[RespondKeywords],
    ) -> Endpoint[P, R]: ...

    def respond(
        self,
        request_type: str,
        handler: Callable[P, R] | None = None,
        /,
        *,
        concurrency: int = 100,
        backlog: int = 1_000,
        timeout: timedelta | float = timedelta(minutes=15),
        idempotent: bool = False,
    ) -> Endpoint[P, R] | Callable[[Callable[P, R]], Endpoint[P, R]]:
        """Respond to requests of a type with a handler's results, as a decorator or a call; also while open.

        The handler's first parameter is validated by its annotation as a subscription's is; what it returns is the
        reply, what it raises becomes the requester's `RemoteError`. Processes that respond to the same type share
        the requests.

        ``concurrency``: handlers at a time in this process. ``backlog``: requests that may wait for one; further
        ones fail at once with `Overloaded`. ``timeout``: of one run; a handler is cancelled then, and also when
        its requester's deadline has passed. ``idempotent``: a request whose responder died may run again here;
        otherwise its requester gets `ResponderDown`.

        Awaiting the result waits until requests reach us. Raises `ConfigError` for what cannot work.
        """
        options = ResponderOptions(
            concurrency=concurrency,
            backlog=backlog,
            timeout=timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout),
            idempotent=idempotent,
        )

        def decorate(function: Callable[P, R]) -> Endpoint[P, R]:
            return self._add_responder(request_type, function, options)

        return decorate if handler is None else decorate(handler)

    def _add_responder(self, request_type: str, function: Callable[P, R], options: ResponderOptions) -> Endpoint[P, R]:
        patterns.check_type(request_type)
        if request_type in self._responders:
            raise ConfigError(f"this bus responds to {request_type!r} already; one handler answers each type")
        if self._closing is not None:
            raise BusClosed(f"{self!r} is closed")
        service = RespondingService(request_type, compile_handler(function), options)
        self._responders.add(request_type, service)
        return Endpoint(service, function, self._stop_responding)

    async def _stop_responding(self, service: RespondingService) -> None:
        self._responders.discard(service.request_type, service)
        await service.stop()

    # Watching

    async def monitor(self, session: str | SessionInfo, *, timeout: float | None = None) -> Monitor:
        """Watch a session: ``await monitor.down`` returns its one `Down` when it ends, however it ends.

        A session that is gone already gives one at once, with the reason ``noproc``. ``timeout`` in seconds for
        beginning to watch. Raises `BrokerUnavailable`, `BusClosed`.
        """
        self._require_open()
        target = session.id if isinstance(session, SessionInfo) else session
        seconds = self.settings.connect_timeout if timeout is None else timeout
        return self._watchers.add(target, await self._broker.watch(target, seconds))

    def monitors(self) -> list[Monitor]:
        """Return the monitors of this bus that still wait, the oldest first."""
        return self._watchers.monitors()

    async def leaked_monitors(self) -> list[Monitor]:
        """Return the monitors whose session is gone, though they have not fired: there should never be one."""
        return await self._watchers.leaked(session.id for session in await self.sessions())

    def on_down(self, name: str) -> Callable[[F], F]:
        """Call a function with the `Down` of each session of that name that ends from now on. As a decorator.

        The name is that of its bus. Our own end is not reported. May be async; what it raises is logged.
        """

        def decorate(function: F) -> F:
            first = not self._watchers.wanted
            self._watchers.call(name, function)
            if first and self._surroundings is not None:
                self._supervisor.start("on_down", self._watch_all)
            return function

        return decorate

    async def _watch_all(self) -> None:
        await self._broker.watch_all(self._watchers.ended, self.settings.connect_timeout)

    async def sessions(self, *, timeout: float | None = None) -> list[SessionInfo]:
        """Return the sessions that live now, ours included, the oldest first."""
        self._require_open()
        seconds = self.settings.connect_timeout if timeout is None else timeout
        return [status.info for status in await self._broker.sessions(seconds)]

    async def subscribers(self, *, timeout: float | None = None) -> list[SubscriptionStatus]:
        """Return each subscription with its state, who serves it, and what waits; by name."""
        self._require_open()
        seconds = self.settings.connect_timeout if timeout is None else timeout
        queues, sessions = await asyncio.gather(self._broker.queues(seconds), self._broker.sessions(seconds))
        return subscription_statuses(queues, sessions, utc_now())

    # Subscribing

    @overload
    def subscribe(
        self,
        *topics: str,
        **options: Unpack[SubscribeKeywords],
    ) -> Callable[[Callable[P, R]], Subscription[P, R]]: ...

    @overload
    def subscribe(
        self,
        *topics: str,
        handler: Callable[P, R],
        **options: Unpack[SubscribeKeywords],
    ) -> Subscription[P, R]: ...

    @overload
    def subscribe(
        self,
        topic: str,
        handler: Callable[P, R],
        /,
        **options: Unpack[SubscribeKeywords],
    ) -> Subscription[P, R]: ...

    def subscribe(
        self,
        *topics: str | Callable[P, R],
        handler: Callable[P, R] | None = None,
        name: str | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        concurrency: int = 1,
        prefetch: int | None = None,
        timeout: timedelta | float = timedelta(minutes=15),
        max_crashes: int = 10,
        durable: bool = True,
    ) -> Subscription[P, R] | Callable[[Callable[P, R]], Subscription[P, R]]:
        """Subscribe a handler to patterns, as a decorator or with the handler as an argument; also while open.

        The subscription ``name`` (by default the handler's) owns one queue at the broker; processes that use the
        same name share its work, other names get their own copy. A signal that matches several of ``topics`` is
        delivered once. The handler's first parameter is validated by its annotation, an optional second one gets
        the `Delivery`. Sync handlers run in a thread.

        ``concurrency``: handlers at a time in this process; 1 keeps the order. ``prefetch``: deliveries held at most,
        by default twice that, at least 16. ``timeout``: of one run, in seconds or as a timedelta. ``max_crashes``:
        deaths of subscribers after which a delivery is a dead letter. ``durable=False``: lives as long as this
        session, and misses what is published while the broker is away.

        Awaiting the result waits until it is served. Raises `ConfigError` for what cannot work.
        """
        texts = [topic for topic in topics if isinstance(topic, str)]
        functions = [topic for topic in topics if not isinstance(topic, str)]
        if handler is not None:
            functions.append(handler)
        options = SubscriberOptions(
            retry=retry,
            concurrency=concurrency,
            prefetch=prefetch,
            timeout=timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout),
            max_crashes=max_crashes,
        )

        def decorate(function: Callable[P, R]) -> Subscription[P, R]:
            return self._add(tuple(texts), function, name, durable, options)

        match functions:
            case []:
                return decorate
            case [function]:
                return decorate(function)
            case _:
                raise ConfigError(
                    f"{len(functions)} handlers for one subscription; give each a subscription of its own"
                )

    def subscriptions(self) -> list[Subscription[..., object]]:
        """Return the subscriptions of this bus, in the order of their making."""
        return list(self._subscriptions.values())

    def _add(
        self,
        topics: tuple[str, ...],
        function: Callable[P, R],
        name: str | None,
        durable: bool,
        options: SubscriberOptions,
    ) -> Subscription[P, R]:
        handler = compile_handler(function)
        spec = SubscriptionSpec(
            name=_subscription_name(name or handler.name), patterns=_checked(topics), durable=durable
        )
        if spec.name in self._subscriptions:
            raise ConfigError(
                f"subscription {spec.name!r} is in this bus already, for {self._subscriptions[spec.name].patterns}; "
                "give this one another name=..., or one handler both patterns"
            )
        if self._closing is not None:
            raise BusClosed(f"{self!r} is closed")
        service = SubscriptionService(spec, handler, options)
        subscription = Subscription(service, function, self._cancel)
        self._subscriptions[spec.name] = subscription
        self._services.add(spec.name, service)
        return subscription

    async def _cancel(self, service: SubscriptionService, *, delete: bool) -> None:
        if self._services.discard(service.name, service):
            del self._subscriptions[service.name]
        await service.stop()
        if self._surroundings is not None and (delete or not service.spec.durable):
            await service.delete()

    # Looking

    @property
    def session(self) -> SessionInfo:
        """The session of this bus; its ``id`` is a new one whenever the broker was lost. Raises `BusClosed` before it
        is opened."""
        if not self._member.joined:
            raise BusClosed(f"{self!r} has no session before it is open")
        return self._member.session

    @property
    def broker(self) -> Broker:
        """The broker behind this bus, for inspection: queues, dead letters, health."""
        return self._broker

    def stats(self) -> BusStats:
        """Return counters and the state of the broker connection."""
        return BusStats(
            publisher=self._publisher.stats,
            subscriptions={name: service.stats() for name, service in self._services.items()},
            requests=self._requester.stats,
            responders={name: service.stats for name, service in self._responders.items()},
            broker=self._broker.health(),
            children=self._supervisor.which_children(),
        )

    def __repr__(self) -> str:
        return f"<Bus {self.settings.name!r} at {masked(self.settings.url)}>"


def _checked(topics: tuple[str, ...]) -> tuple[str, ...]:
    if not topics:
        raise ConfigError("a subscription needs at least one pattern, like 'order.*' or '#'")
    for topic in topics:
        patterns.parse(topic)
    return tuple(dict.fromkeys(topics))


def _subscription_name(name: str) -> str:
    ascii_word = name.isascii() and name.replace(".", "").replace("-", "").replace("_", "").isalnum()
    if not ascii_word or len(name) > 100:
        raise ConfigError(
            f"subscription name {name[:120]!a} must be 1 to 100 letters, digits, '.', '-' or '_'; pass name='billing'"
        )
    return name
