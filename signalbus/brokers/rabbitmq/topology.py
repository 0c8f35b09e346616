"""Every exchange, queue and binding that signalbus needs, as values. Pure.

::

    <p>.signals (topic) ── patterns ──> <p>.q.<subscription> ── given up ──> <p>.dead (fanout) ──> <p>.dead
    <p>.delay.<s> (fanout) ──> <p>.delay.<s>, TTL s ──> <p>.return (direct) ── queue's name ──> <p>.q.<subscription>
                                                           └── target gone ──> <p>.lost (fanout) ──> <p>.lost
    <p>.registry (stream): the durable subscriptions, one record for each change
    The default exchange ──> <p>.ledger: facts, until a router collects them; bounded, the oldest go first

    Sessions. Each has three queues; the last two are exclusive to its consuming connection.
    <p>.lease.<id>, TTL 0: holds one token, in its session's hands; freed when the session dies
        └── expired at once ──> <p>.sessions (topic), key down.<id>
    <p>.sessions ── down.#, up.#, left.#, registry ──> <p>.s.<id>: the inbox, once the session observes others
    <p>.roll (fanout) ──> <p>.s.<id>: a live event loop answers
                      ──> <p>.here.<id>.<info>, TTL 0, never consumed ── expired at once ──> inbox of who asks
    The default exchange ──> <p>.s.<id>: messages to one session; ──> <p>.r.<type>: requests
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
#: A lease queue outlives its session by this much; declared and not consumed it is dead.
LEASE_MILLISECONDS = 5_000
#: A request queue goes with its last consumer; this is for one whose responder died before it consumed.
REQUESTS_MILLISECONDS = 30_000
#: Who is stopped does not read its inbox; the broker gives the session up soon, and drops what is older until then.
INBOX_MESSAGES = 50_000
INBOX_BYTES = 64 * 1024 * 1024
#: Where routers are told: as if they were one session. Ids of sessions are never that short.
ROUTERS = "router"
#: Facts that wait for a router: half an hour of a busy bus, and no more than a broker can spare.
LEDGER_BYTES = 256 * 1024 * 1024
MAX_NAME_BYTES = 127  # the driver's limit for exchanges; queues' names are routing keys too
MAX_QUEUE_BYTES = 255
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
    auto_delete: bool = False  # goes with its last consumer


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

    @property
    def ledger(self) -> str:
        """The queue of facts."""
        return f"{self.prefix}.ledger"

    @property
    def sessions(self) -> str:
        """The topic exchange on which sessions come and go."""
        return f"{self.prefix}.sessions"

    @property
    def roll(self) -> str:
        """The exchange that asks all sessions. The routing key is the inbox to answer to."""
        return f"{self.prefix}.roll"

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

    def lease(self, session: str) -> str:
        """Return the queue that says whether a session lives."""
        return f"{self.prefix}.lease.{session}"

    def inbox(self, session: str) -> str:
        """Return the queue of messages to one session."""
        return f"{self.prefix}.s.{session}"

    def presence(self, session: str, info: str) -> str:
        """Return the queue that answers roll calls for a session, even while its process cannot."""
        return f"{self.prefix}.here.{session}.{info}"

    def present(self, queue: str) -> tuple[str, str] | None:
        """Return session and info of a presence queue; None if it is not one."""
        head = self.presence("", "")[:-1]
        session, dot, info = queue.removeprefix(head).rpartition(".")
        return (session, info) if dot and queue.startswith(head) else None

    def requests(self, request_type: str) -> str:
        """Return the queue of the requests of one type."""
        return f"{self.prefix}.r.{request_type}"

    def base(self) -> Sequence[Declaration]:
        """What every process needs, publishers too."""
        return (
            Exchange(name=self.signals, kind="topic"),
            Exchange(name=self.dead, kind="fanout"),
            self.dead_letters(),
            Binding(queue=self.dead, exchange=self.dead),
            Exchange(name=self.lost, kind="fanout"),
            Queue(name=self.lost, arguments=self._durable({"x-message-ttl": LOST_MILLISECONDS})),
            Binding(queue=self.lost, exchange=self.lost),
            Exchange(name=self.returns, kind="direct", arguments={"alternate-exchange": self.lost}),
            Queue(
                name=self.ledger,
                arguments=self._durable(
                    {
                        "x-overflow": "drop-head",
                        "x-max-length-bytes": LEDGER_BYTES,
                        "x-delivery-limit": PEEK_LIMIT,
                        # Of several routers one stores, and the next one goes on where it ends.
                        "x-single-active-consumer": True,
                    }
                ),
            ),
            *self.meeting(),
        )

    def meeting(self) -> Sequence[Exchange]:
        """Return the exchanges through which sessions learn of each other."""
        return Exchange(name=self.sessions, kind="topic"), Exchange(name=self.roll, kind="fanout")

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

    def session(self, session: str, info: str) -> Sequence[Queue]:
        """Return the queues of one session: its inbox, its presence and its lease.

        All classic: a quorum queue for each session would leak memory, and what they hold is worth nothing later.
        """
        inbox, presence = self.inbox(session), self.presence(session, info)
        limits: dict[str, Argument] = {"x-max-length": INBOX_MESSAGES, "x-max-length-bytes": INBOX_BYTES}
        return (
            Queue(name=inbox, arguments={"x-queue-type": "classic", **limits}, exclusive=True),
            Queue(
                name=presence,
                # To the default exchange, with the key it came with: the inbox of who asks.
                arguments={"x-queue-type": "classic", "x-message-ttl": 0, "x-dead-letter-exchange": ""},
                exclusive=True,
            ),
            Queue(
                name=self.lease(session),
                arguments={
                    "x-queue-type": "classic",
                    "x-message-ttl": 0,
                    "x-expires": LEASE_MILLISECONDS,
                    "x-dead-letter-exchange": self.sessions,
                    "x-dead-letter-routing-key": f"down.{session}",
                },
            ),
        )

    def dead_letters(self) -> Queue:
        """Return the queue of dead letters."""
        return Queue(name=self.dead, arguments=self._durable({"x-delivery-limit": PEEK_LIMIT}))

    def words(self) -> Queue:
        """Return the queue in which routers hear what became of the dead letters that they sent.

        It is the inbox of a session that there is not, so subscribers tell it as they tell any publisher. Durable, as
        a replay outlives its router.
        """
        limits: dict[str, Argument] = {"x-max-length-bytes": INBOX_BYTES, "x-delivery-limit": PEEK_LIMIT}
        return Queue(name=self.inbox(ROUTERS), arguments=self._durable(limits))

    def answering(self, session: str, info: str) -> Sequence[Binding]:
        """Return what makes a session answer roll calls. Its lease comes first: who is listed has to be alive."""
        queues = (self.inbox(session), self.presence(session, info))
        return tuple(Binding(queue=queue, exchange=self.roll) for queue in queues)

    def observing(self, inbox: str) -> Sequence[Binding]:
        """Return what brings news of all sessions into an inbox."""
        return tuple(
            Binding(queue=inbox, exchange=self.sessions, key=key) for key in ("down.#", "up.#", "left.#", "registry")
        )

    def request_queue(self, request_type: str, backlog: int) -> Queue:
        """Return the queue of the requests of one type. Raises `ConfigError` for a type that is too long."""
        return Queue(
            name=self._checked(self.requests(request_type), request_type, what="request type"),
            arguments={
                "x-queue-type": "classic",
                "x-max-length": backlog,
                "x-overflow": "reject-publish",
                "x-expires": REQUESTS_MILLISECONDS,
            },
            auto_delete=True,
        )

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

    def _checked(self, queue: str, name: str, *, what: str = "subscription name") -> str:
        if not _NAME_CHARACTERS.issuperset(queue):
            raise ConfigError(f"{what} {name!a}: RabbitMQ queues are named with letters, digits and '-_.:@#,/+ '")
        if len(queue) > MAX_NAME_BYTES:
            excess = len(queue) - MAX_NAME_BYTES
            raise ConfigError(f"{what} {name!a} is {excess} characters too long for RabbitMQ")
        return queue
