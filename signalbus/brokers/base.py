"""The seam: what signalbus asks of a broker.

A broker stores signals and queues, and carries out settlements. It decides nothing: routing rules come from
`signalbus.patterns`, what becomes of a failed delivery from `signalbus.delivery`. Both brokers pass the contract
suite in ``tests/brokers/contract.py``, so code above this file never asks which one it has.

Errors: every method is bounded in time and raises `BrokerError` (or `ConfigError` where the operator must act);
driver errors never pass this seam. Cancelling a call is safe; its effect may or may not have happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from ..codec import EncodedSignal
from ..delivery import DeadReason, Failure, Settlement


class PublishResult(StrEnum):
    """How publishing one signal ended."""

    CONFIRMED = "confirmed"  # stored durably for every matching subscription
    RETURNED = "returned"  # no subscription matches; nothing is stored
    REFUSED = "refused"  # the broker said no (full queue, low disk); nothing is stored everywhere; may pass
    UNKNOWN = "unknown"  # sent, but the answer was lost: may be stored


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """The result for one signal; ``reason`` explains REFUSED and UNKNOWN."""

    result: PublishResult
    reason: str = ""


CONFIRMED = PublishOutcome(PublishResult.CONFIRMED)
RETURNED = PublishOutcome(PublishResult.RETURNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
    """A named interest in patterns. Not durable: it lives as long as the session that declared it."""

    name: str
    patterns: tuple[str, ...]
    durable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """Who is connected: one open bus. ``id`` is unique for each opening."""

    id: str
    name: str
    host: str
    pid: int
    version: str
    started: datetime


@dataclass(slots=True, kw_only=True, eq=False)
class Incoming:
    """One signal handed to this process. Compared by identity; a redelivery is another object.

    ``attempt`` counts handler runs from 1 and grows only by `RetryLater`. ``crashes`` counts how often a subscriber
    died or lost the broker while holding it; it grows with every redelivery that nobody asked for, this process's
    own losses included (`signalbus.subscriber` tells those apart). ``malformed`` says why the envelope cannot be
    read at all, if so.
    ``handle`` belongs to the adapter.
    """

    signal: EncodedSignal
    attempt: int = 1
    crashes: int = 0
    history: tuple[Failure, ...] = ()
    malformed: str | None = None
    handle: object = None

    @property
    def redelivered(self) -> bool:
        """Whether it may have been handed out before, in whole or in part."""
        return self.attempt > 1 or self.crashes > 0


class Consumer(Protocol):
    """A stream of deliveries of one subscription to this process, at most ``prefetch`` of them unsettled.

    Outlives the loss of the broker: deliveries go on when it is back.
    """

    async def receive(self) -> Sequence[Incoming]:
        """Wait for deliveries and return them, oldest first, at least one; an empty sequence means: stopped.

        Waits without a deadline, as its purpose is to wait; `stop` ends it. One caller at a time.
        """
        ...

    async def settle(self, incoming: Incoming, settlement: Settlement) -> bool:
        """Carry a settlement out; True once it is as durable as the broker makes it.

        False: the delivery is not ours any more (connection lost, session fenced) and comes again, to somebody.
        A `DeadLetter` or `RetryLater` is stored before the original is forgotten: a duplicate is possible, a loss is
        not. Settling twice is a no-op that returns False.
        """
        ...

    async def stop(self) -> None:
        """Take nothing more; give back what `receive` has not returned. Idempotent.

        Deliveries that were received can still be settled until `aclose`.
        """
        ...

    async def aclose(self) -> None:
        """Stop, and give back everything unsettled. Idempotent."""
        ...


class BrokerState(StrEnum):
    """Where the connection to the broker stands."""

    CLOSED = "closed"
    CONNECTING = "connecting"
    UP = "up"
    BLOCKED = "blocked"  # connected, but takes no publishes for now
    DEGRADED = "degraded"  # connected, but something is refused (rights, conflicting arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """What a subscription's queue holds: ``ready`` to be handed out, ``unsettled`` in subscribers' hands,
    ``delayed`` waiting for a retry (None where the broker cannot tell per subscription)."""

    name: str
    patterns: tuple[str, ...]
    durable: bool
    ready: int
    unsettled: int | None
    delayed: int | None
    consumers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDeadLetter:
    """A delivery that was given up, with why and its history. ``position`` is the broker's own, for ordering."""

    position: int
    subscription: str
    signal: EncodedSignal
    reason: DeadReason
    detail: str
    attempt: int
    crashes: int
    at: datetime
    history: tuple[Failure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerHealth:
    """State of the connection with the reason for anything but UP, counters since opening, and warnings.

    ``counters`` are monotonic, e.g. ``reconnects``, ``consumers_recycled``, ``settles_lost``.
    """

    state: BrokerState
    reason: str = ""
    counters: Mapping[str, int] = field(default_factory=dict[str, int])
    warnings: tuple[str, ...] = ()


class Broker(Protocol):
    """An engine that stores signals and queues. Opened once, used by one event loop."""

    async def open(self, session: SessionInfo, timeout: float) -> None:
        """Connect and make ready, within ``timeout`` seconds.

        Raises `BrokerUnavailable` (cannot be reached), `StorageError` or `ConfigError` (wrong password,
        newer schema, network file system).
        """
        ...

    async def aclose(self) -> None:
        """Release everything: consumers, temporary subscriptions, connections. Idempotent, bounded, never raises."""
        ...

    async def declare(self, subscription: SubscriptionSpec, timeout: float) -> None:
        """Make a subscription exist, with these patterns. Idempotent.

        Signals published after it returns reach the subscription. Patterns of a durable subscription that nobody
        serves are replaced; while others serve it with other settings: `ConfigError`.
        """
        ...

    async def delete(self, name: str, timeout: float) -> None:
        """Delete a subscription with everything in its queue. Idempotent."""
        ...

    async def publish(self, batch: Sequence[EncodedSignal], timeout: float) -> Sequence[PublishOutcome]:
        """Store a batch, pipelined; return one outcome each, in order. One try: repeating is the caller's.

        Not atomic. Order within one subscription follows the order of calls while nothing fails.
        Raises `BrokerUnavailable` or `Backpressure` only if nothing of the batch was sent within ``timeout`` seconds.
        """
        ...

    async def consume(self, name: str, prefetch: int, timeout: float) -> Consumer:
        """Start to serve a declared subscription. Returns when the broker counts us as a consumer."""
        ...

    async def queues(self, timeout: float) -> Sequence[QueueInfo]:
        """Return the subscriptions with what their queues hold, by name. A look; nothing depends on it."""
        ...

    async def dead_letters(self, limit: int, timeout: float) -> Sequence[StoredDeadLetter]:
        """Return up to ``limit`` dead letters, oldest first, and leave them where they are."""
        ...

    def health(self) -> BrokerHealth:
        """Return the state of the connection, without asking the broker."""
        ...
