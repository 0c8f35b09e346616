"""The seam: what signalbus asks of a broker.

A broker stores signals and queues, and carries out settlements. It decides nothing: routing rules come from
`signalbus.patterns`, what becomes of a failed delivery from `signalbus.delivery`. Both brokers pass the contract
suite in ``tests/brokers/contract.py``, so code above this file never asks which one it has.

Errors: every method is bounded in time and raises `BrokerError` (or `ConfigError` where the operator must act);
driver errors never pass this seam. Cancelling a call is safe; its effect may or may not have happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from ..codec import EncodedSignal
from ..delivery import DeadReason, Failure, Settlement
from ..ledger import Batch
from ..sessions import Down, DownReason, SessionInfo


class PublishResult(StrEnum):
    """How publishing one signal ended."""

    CONFIRMED = "confirmed"  # stored durably for every matching subscription
    RETURNED = "returned"  # no subscription matches; nothing is stored
    REFUSED = "refused"  # the broker said no (full queue, low disk); nothing is stored everywhere; may pass
    UNKNOWN = "unknown"  # sent, but the answer was lost: may be stored


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """The result for one signal; ``reason`` explains REFUSED and UNKNOWN.

    ``subscriptions``: where a confirmed one went, by name; None where the broker does not tell.
    """

    result: PublishResult
    reason: str = ""
    subscriptions: tuple[str, ...] | None = field(default=None, compare=False)


CONFIRMED = PublishOutcome(PublishResult.CONFIRMED)
RETURNED = PublishOutcome(PublishResult.RETURNED)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionSpec:
    """A named interest in patterns. Not durable: it lives as long as the session that declared it."""

    name: str
    patterns: tuple[str, ...]
    durable: bool = True


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


class AnswerKind(StrEnum):
    """How one try of a request ended."""

    REPLY = "reply"  # the responder answered: `body`
    FAILED = "failed"  # its handler raised: `body` describes the error
    NO_RESPONDER = "no_responder"  # nobody responds to this type; not run
    MOVED = "moved"  # the responder left before its handler began; not run, to be sent again
    OVERLOADED = "overloaded"  # too many requests wait already; not run
    RESPONDER_DOWN = "responder_down"  # the responder died while it had it: not run, half run or run
    EXPIRED = "expired"  # no answer until the deadline: not run, half run or run
    LOST = "lost"  # the requester's own connection was lost: not run, half run or run


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of a request. ``session`` is who answered; ``reason`` explains what is no reply."""

    kind: AnswerKind
    body: bytes = b""
    content_type: str | None = None
    session: str = ""
    reason: str = ""


@dataclass(slots=True, kw_only=True, eq=False)
class IncomingRequest:
    """One request handed to this process.

    ``remaining``: seconds from its arrival until nobody waits for the answer any more. ``redelivered``: another
    responder had it and died, so it may have run already. ``handle`` belongs to the adapter.
    """

    signal: EncodedSignal
    remaining: float
    redelivered: bool = False
    handle: object = None


class Responder(Protocol):
    """A stream of requests of one type to this process. Outlives the loss of the broker."""

    async def receive(self) -> Sequence[IncomingRequest]:
        """Wait for requests and return them, at least one; an empty sequence means: stopped.

        What has expired is left out. Waits without a deadline, as its purpose is to wait; `stop` ends it.
        """
        ...

    async def answer(self, request: IncomingRequest, answer: Answer) -> bool:
        """Send the answer of a received request; each is answered once. False: the requester is known to be gone.

        Raises `BrokerError` if it could not be sent; then it may be tried again.
        """
        ...

    async def stop(self) -> None:
        """Take nothing more; what `receive` has not returned is answered with MOVED. Idempotent.

        Requests that were received can still be answered until `aclose`, and their requesters go on waiting for it.
        """
        ...

    async def aclose(self) -> None:
        """Stop, and leave whatever is unanswered to others: its requesters learn that we are down. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStatus:
    """A living session, and what it says of itself; ``report`` is None if it does not answer in time.

    Then it is stopped, or its event loop is blocked: a dead one is not listed at all.
    """

    info: SessionInfo
    report: bytes | None


class Host(Protocol):
    """What a broker asks of the bus that opened it. All on the event loop; none may block or raise."""

    def report(self) -> bytes:
        """Return what this session says of itself, for those who ask."""
        ...

    def take(self, message: bytes) -> None:
        """Take a message that another session sent to this one; see `Broker.send`."""
        ...

    def renewed(self, session: SessionInfo) -> None:
        """Note that this session is another incarnation now: the earlier one was declared dead."""
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
    ``delayed`` waiting for a retry (None where the broker cannot tell per subscription). ``oldest``: when the oldest
    ready signal was published, None if there is none or the broker cannot tell."""

    name: str
    patterns: tuple[str, ...]
    durable: bool
    ready: int
    unsettled: int | None
    delayed: int | None
    consumers: int
    oldest: datetime | None = None


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

    async def open(self, session: SessionInfo, timeout: float, host: Host | None = None) -> None:
        """Connect and make ready, within ``timeout`` seconds; from then on the session is alive to others.

        Raises `BrokerUnavailable` (cannot be reached), `StorageError` or `ConfigError` (wrong password,
        newer schema, network file system).
        """
        ...

    async def aclose(self, reason: DownReason = DownReason.NORMAL) -> None:
        """Release everything: consumers, temporary subscriptions, connections. Idempotent, bounded, never raises.

        Who watches the session gets a `Down` with this reason.
        """
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

    async def audience(self, signal_type: str, timeout: float) -> Sequence[str]:
        """Return the names of the subscriptions that match a type now, durable and temporary, by name."""
        ...

    async def request(self, request: EncodedSignal, timeout: float) -> Answer:
        """Send a request to one of the responders to its type, and wait for the answer, at most ``timeout`` seconds.

        One try: repeating what was MOVED is the caller's. A request that a dead responder had goes to another one,
        marked as redelivered, if there is one. Late and duplicate answers are dropped and counted (``replies_late``).
        Raises `BrokerUnavailable` or `Backpressure` only if it was not sent.
        """
        ...

    async def respond(self, request_type: str, concurrency: int, backlog: int, timeout: float) -> Responder:
        """Start to respond to a type. Returns once requests reach us.

        At most ``concurrency`` requests are handed out unanswered; beyond ``backlog`` waiting ones (RabbitMQ: for all
        responders of the type together) requesters get OVERLOADED. Raises `ConfigError` if others respond with
        another backlog, where it is common to all.
        """
        ...

    async def watch(self, session: str, timeout: float) -> asyncio.Future[Down]:
        """Watch a session: the future gets exactly one `Down`; at once, with NOPROC, if there is no such session.

        It survives losses of our own connection: what ended meanwhile is found afterwards, and nothing that did not.
        Cancel the future to end the watch; on `aclose` it is cancelled. Raises `BrokerUnavailable`.
        """
        ...

    async def watch_all(self, ended: Callable[[Down], None], timeout: float) -> None:
        """Call ``ended`` once for the end of every session but ours that lives now or later, until `aclose`.

        May be called several times, with different functions. Raises `BrokerUnavailable`.
        """
        ...

    async def sessions(self, timeout: float) -> Sequence[SessionStatus]:
        """Return the living sessions, ours included, oldest first, with what each says of itself."""
        ...

    async def send(self, session: str, message: bytes) -> None:
        """Send a message to a session: at most once, without an answer, and not at all if there is no such session.

        Raises `BrokerUnavailable` if it could not be sent.
        """
        ...

    async def queues(self, timeout: float) -> Sequence[QueueInfo]:
        """Return the subscriptions with what their queues hold, by name. A look; nothing depends on it."""
        ...

    async def dead_letters(self, limit: int, timeout: float) -> Sequence[StoredDeadLetter]:
        """Return up to ``limit`` dead letters, oldest first, and leave them where they are."""
        ...

    def append(self, batches: Sequence[Batch]) -> None:
        """Take facts for the ledger: at most once, some time later, in order. Never blocks, and never raises.

        A fact is worth less than a signal: what finds no room, or cannot be stored, is dropped and counted
        (``facts_dropped``), with a warning in `health`, and delivery goes on. What was appended before `aclose` is
        stored by its end, if it can be within the time that has.
        """
        ...

    def health(self) -> BrokerHealth:
        """Return the state of the connection, without asking the broker."""
        ...
