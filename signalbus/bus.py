"""The bus: what a program holds. A small composition of publisher, subscribers and a broker."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import ParamSpec, Self, TypeVar, overload

from . import brokers, codec, patterns
from .brokers.base import Broker, BrokerHealth, SessionInfo, SubscriptionSpec
from .config import Settings, masked, parse_url
from .errors import BusClosed, ConfigError, Escalated, InvalidSignal
from .handlers import compile_handler
from .policy import RetryPolicy
from .publisher import Publisher, PublisherStats, Unrouted
from .receipts import Receipt
from .signals import ExtensionValue, Signal, new_id, utc_now
from .subscriber import SubscriberOptions, SubscriptionStats
from .subscription import Service, Subscription, Surroundings
from .supervision import Supervisor

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_RETRY = RetryPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class BusStats:
    """What a bus did since it was created, and the health of its broker."""

    publisher: PublisherStats
    subscriptions: dict[str, SubscriptionStats]
    broker: BrokerHealth


class Bus:
    """Publishes signals and serves subscriptions over one broker.

    ``url`` defaults to ``SIGNALBUS_URL``, else ``sqlite:///signalbus.db``. ``name`` is the source of signals that
    name none. Times are in seconds; ``drain_timeout`` is how long closing waits for running handlers.

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
        connect_timeout: float | None = None,
        drain_timeout: float | None = None,
    ) -> None:
        self.settings = Settings.read(
            url=url,
            name=name,
            max_signal_bytes=max_signal_bytes,
            publish_timeout=publish_timeout,
            connect_timeout=connect_timeout,
            drain_timeout=drain_timeout,
        )
        self._broker: Broker = brokers.connect(parse_url(self.settings.url))
        self._publisher = Publisher(self._broker, self.settings.max_signal_bytes)
        self._services: dict[str, Service] = {}
        self._subscriptions: dict[str, Subscription[..., object]] = {}
        self._starting: set[asyncio.Task[None]] = set()
        self._supervisor = Supervisor(self.settings.name, self._escalate)
        self._session: SessionInfo | None = None
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
        if self._session is not None:
            raise BusClosed(f"{self!r} was opened before; make a new Bus")
        self._session = SessionInfo(
            id=new_id(),
            name=self.settings.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=_version(),
            started=utc_now(),
        )
        try:
            await self._broker.open(self._session, self.settings.connect_timeout)
            self._surroundings = Surroundings(
                broker=self._broker,
                session=self._session.id,
                supervisor=self._supervisor,
                timeout=self.settings.connect_timeout,
                drain_timeout=self.settings.drain_timeout,
            )
            for task in [self._start(service, self._surroundings) for service in self._services.values()]:
                await task
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
        # Handlers that are still running may publish.
        await asyncio.gather(*(service.stop() for service in self._services.values()))
        self._surroundings = None
        await self._supervisor.aclose()
        await self._broker.aclose()

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
    async def publish(
        self, signal: Signal, /, *, timeout: float | None = None, unroutable: Unrouted = "raise"
    ) -> Receipt: ...

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
        timeout: float | None = None,
        unroutable: Unrouted = "raise",
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
    ) -> Receipt:
        """Publish a signal, or a type with data; returns when it is stored for every matching subscription.

        ``timeout`` in seconds, by default ``publish_timeout``; a lost connection is waited out within it, and the
        signal sent again with the same id. With ``unroutable="ignore"`` having no subscription is fine.

        Raises `Unroutable`, `InvalidSignal` (nothing was sent), `BrokerUnavailable` and `Backpressure` (not
        stored), `PublishUnconfirmed` (outcome unknown, safe to repeat with the same signal), `BusClosed`.
        """
        if isinstance(signal, str):
            signal = Signal(
                type=signal,
                data=data,
                source=source or self.settings.name,
                subject=subject,
                datacontenttype=datacontenttype,
                correlationid=correlationid,
                causationid=causationid,
                extensions=extensions or {},
            )
        elif data is not None:
            raise InvalidSignal("data is given twice: it belongs into the Signal")
        encoded = self._encode(signal)
        await self._ready_to_publish()
        return await self._publisher.publish(encoded, self._timeout(timeout), unroutable)

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
        encoded = [
            self._encode(item if isinstance(item, Signal) else Signal(type=item[0], data=item[1])) for item in signals
        ]
        await self._ready_to_publish()
        return await self._publisher.publish_many(encoded, self._timeout(timeout), unroutable)

    def _encode(self, signal: Signal) -> codec.EncodedSignal:
        return codec.encode(signal, default_source=self.settings.name)

    async def _ready_to_publish(self) -> None:
        self._require_open()
        if self._starting:
            # Subscribed a moment ago at run time: what is published next should reach it.
            await asyncio.wait(self._starting)
            self._require_open()

    def _timeout(self, timeout: float | None) -> float:
        return self.settings.publish_timeout if timeout is None else timeout

    # Subscribing

    @overload
    def subscribe(
        self,
        *topics: str,
        name: str | None = None,
        retry: RetryPolicy = ...,
        concurrency: int = ...,
        prefetch: int | None = ...,
        timeout: timedelta | float = ...,
        max_crashes: int = ...,
        durable: bool = ...,
    ) -> Callable[[Callable[P, R]], Subscription[P, R]]: ...

    @overload
    def subscribe(
        self,
        *topics: str,
        handler: Callable[P, R],
        name: str | None = None,
        retry: RetryPolicy = ...,
        concurrency: int = ...,
        prefetch: int | None = ...,
        timeout: timedelta | float = ...,
        max_crashes: int = ...,
        durable: bool = ...,
    ) -> Subscription[P, R]: ...

    @overload
    def subscribe(
        self,
        topic: str,
        handler: Callable[P, R],
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy = ...,
        concurrency: int = ...,
        prefetch: int | None = ...,
        timeout: timedelta | float = ...,
        max_crashes: int = ...,
        durable: bool = ...,
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
                f"subscription {spec.name!r} is in this bus already, for {self._services[spec.name].spec.patterns}; "
                "give this one another name=..., or one handler both patterns"
            )
        if self._closing is not None:
            raise BusClosed(f"{self!r} is closed")
        service = Service(spec, handler, options)
        subscription = Subscription(service, function, self._cancel)
        self._services[spec.name] = service
        self._subscriptions[spec.name] = subscription
        if self._surroundings is not None:
            self._start(service, self._surroundings)
        return subscription

    def _start(self, service: Service, surroundings: Surroundings) -> asyncio.Task[None]:
        task = service.start(surroundings)
        self._starting.add(task)
        task.add_done_callback(self._started)
        return task

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s: %s failed: %s", self.settings.name, task.get_name(), error)

    async def _cancel(self, service: Service, *, delete: bool) -> None:
        name = service.spec.name
        if self._services.get(name) is service:
            del self._services[name], self._subscriptions[name]
        await service.stop()
        if self._surroundings is not None and (delete or not service.spec.durable):
            await service.delete()

    # Looking

    @property
    def session(self) -> SessionInfo:
        """The session of this bus; ``id`` is new for each opening. Raises `BusClosed` before it is opened."""
        if self._session is None:
            raise BusClosed(f"{self!r} has no session before it is open")
        return self._session

    @property
    def broker(self) -> Broker:
        """The broker behind this bus, for inspection: queues, dead letters, health."""
        return self._broker

    def stats(self) -> BusStats:
        """Return counters and the state of the broker connection."""
        return BusStats(
            publisher=self._publisher.stats,
            subscriptions={name: service.stats() for name, service in self._services.items()},
            broker=self._broker.health(),
        )

    def __repr__(self) -> str:
        return f"<Bus {self.settings.name!r} at {masked(self.settings.url)}>"


def _version() -> str:
    try:
        return importlib.metadata.version("signalbus-router")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source tree


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
