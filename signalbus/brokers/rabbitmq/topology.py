"""Every exchange, queue and binding that signalbus needs, as values. Pure.

::

    <p>.signals (topic) ── patterns ──> <p>.q.<subscription> ── given up ──> <p>.dead (fanout) ──> <p>.dead
    <p>.delay.<s> (fanout) ──> <p>.delay.<s>, TTL s ──> <p>.return (direct) ── queue's name ──> <p>.q.<subscription>
                                                           └── target gone ──> <p>.lost (fanout) ──> <p>.lost
    <p>.registry (stream): the durable subscriptions, one record for each change
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...config import QueueType
from ...errors import ConfigError

Argument = str | int | bool
ExchangeKind = Literal["topic", "direct", "fanout"]

#: RabbitMQ 4 drops a message after 20 returns by default. We count crashes and attempts ourselves; this is the net
#: below for messages that kill every reader.
DELIVERY_LIMIT = 100
#: Looking at dead letters returns them each time. "No limit" (-1) is new in 4.0, so a number nobody reaches.
PEEK_LIMIT = 2_000_000_000
#: What came back for a subscription that is gone stays this long, for people to look at.
LOST_MILLISECONDS = 14 * 24 * 3600 * 1000
MAX_NAME_BYTES = 127  # the driver's limit for exchanges; queues' names are routing keys too
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:@#,/+ ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A durable exchange."""

    name: str
    kind: ExchangeKind
    arguments: Mapping[str, Argument] = field(default_factory=dict[str, Argument])


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """A queue: durable, or exclusive to the connection that declares it. RabbitMQ 4.3 allows nothing in between."""

    name: str
    arguments: Mapping[str, Argument]
    exclusive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Messages of ``exchange`` with ``key`` go to ``queue``."""

    queue: str
    exchange: str
    key: str = ""


Declaration = Exchange | Queue | Binding


@dataclass(frozen=True, slots=True)
class Topology:
    """Names and declarations for one prefix and one type of durable queues."""

    prefix: str
    queue_type: QueueType

    @property
    def signals(self) -> str:
        """The topic exchange that signals are published to."""
        return f"{self.prefix}.signals"

    @property
    def dead(self) -> str:
        """The exchange and the queue of dead letters."""
        return f"{self.prefix}.dead"

    @property
    def returns(self) -> str:
        """The exchange through which delayed deliveries return to their queues."""
        return f"{self.prefix}.return"

    @property
    def lost(self) -> str:
        """The exchange and the queue of delayed deliveries whose subscription is gone."""
        return f"{self.prefix}.lost"

    @property
    def registry(self) -> str:
        """The stream that remembers durable subscriptions."""
        return f"{self.prefix}.registry"

    def queue(self, subscription: str) -> str:
        """Return the queue of a durable subscription. Raises `ConfigError` for a name that cannot be one."""
        return self._checked(f"{self.prefix}.q.{subscription}", subscription)

    def temporary_queue(self, subscription: str, incarnation: str) -> str:
        """Return the queue of a temporary subscription: a new name each time.

        After a broken connection the old queue is locked until the broker notices (up to three heartbeats).
        """
        return self._checked(f"{self.prefix}.t.{incarnation}.{subscription}", subscription)

    def delay(self, seconds: int) -> str:
        """Return the exchange and the queue of one step of the delay ladder."""
        return f"{self.prefix}.delay.{seconds}"

    def base(self) -> Sequence[Declaration]:
        """What every process needs, publishers too."""
        return (
            Exchange(name=self.signals, kind="topic"),
            Exchange(name=self.dead, kind="fanout"),
            Queue(name=self.dead, arguments=self._durable({"x-delivery-limit": PEEK_LIMIT})),
            Binding(queue=self.dead, exchange=self.dead),
            Exchange(name=self.lost, kind="fanout"),
            Queue(name=self.lost, arguments=self._durable({"x-message-ttl": LOST_MILLISECONDS})),
            Binding(queue=self.lost, exchange=self.lost),
            Exchange(name=self.returns, kind="direct", arguments={"alternate-exchange": self.lost}),
        )

    def subscription(self, name: str) -> Queue:
        """Return the queue of a durable subscription."""
        return Queue(
            name=self.queue(name),
            arguments=self._durable(
                {
                    "x-delivery-limit": DELIVERY_LIMIT,
                    "x-dead-letter-exchange": self.dead,
                    # Tells people and us which subscription gave it up; x-death says so only by position.
                    "x-dead-letter-routing-key": self.queue(name),
                }
            ),
        )

    def temporary(self, queue: str) -> Queue:
        """Return the queue of a temporary subscription. Explicitly classic: a vhost's default may say otherwise."""
        return Queue(name=queue, arguments={"x-queue-type": "classic"}, exclusive=True)

    def bindings(self, queue: str, patterns: Sequence[str], *, return_key: str) -> Sequence[Binding]:
        """Return the bindings of a subscription: its patterns, and the way back from delays."""
        return (
            *(Binding(queue=queue, exchange=self.signals, key=pattern) for pattern in patterns),
            Binding(queue=queue, exchange=self.returns, key=return_key),
        )

    def delay_step(self, seconds: int) -> Sequence[Declaration]:
        """Return one step of the delay ladder."""
        name = self.delay(seconds)
        return (
            Exchange(name=name, kind="fanout"),
            Queue(
                name=name,
                arguments=self._durable({"x-message-ttl": seconds * 1000, "x-dead-letter-exchange": self.returns}),
            ),
            Binding(queue=name, exchange=name),
        )

    def registry_stream(self) -> Queue:
        """Return the stream that remembers durable subscriptions."""
        return Queue(name=self.registry, arguments={"x-queue-type": "stream"})

    def _durable(self, arguments: Mapping[str, Argument]) -> Mapping[str, Argument]:
        common: dict[str, Argument] = {"x-queue-type": self.queue_type, "x-overflow": "reject-publish", **arguments}
        if self.queue_type == "classic":
            # Classic queues know neither: they dead-letter at most once, and count no deliveries.
            common.pop("x-delivery-limit", None)
        elif "x-dead-letter-exchange" in common:
            # Without it a missing or full target loses the message. Needs reject-publish.
            common["x-dead-letter-strategy"] = "at-least-once"
        return common

    def _checked(self, queue: str, subscription: str) -> str:
        if not _NAME_CHARACTERS.issuperset(queue):
            raise ConfigError(
                f"subscription name {subscription!a}: RabbitMQ queues are named with letters, digits and '-_.:@#,/+ '"
            )
        if len(queue) > MAX_NAME_BYTES:
            excess = len(queue) - MAX_NAME_BYTES
            raise ConfigError(f"subscription name {subscription!a} is {excess} characters too long for RabbitMQ")
        return queue
