"""What the ledger knows: facts, and the batches they travel in. Values only.

A fact is one step of one signal (or of a session), told by one recorder. Recorders tell what they saw and nothing
else; conclusions are drawn by `signalbus.trace.tree`, which marks them as such.

The order of a step's fields is their order on the wire and in the store: add new ones at the end, with a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import ClassVar, cast

#: A fact as it is recorded, sent and stored: kind, seconds since 1970, then the fields of the step, in order.
Row = tuple[object, ...]


class Level(StrEnum):
    """How much a recorder tells."""

    ALL = "all"
    FAILURES = "failures"  # what failed, and how that ended
    OFF = "off"


class ReplySide(StrEnum):
    """Who tells of a reply."""

    RESPONDER = "responder"  # what its handler did, and how long that took
    REQUESTER = "requester"  # what it got, and how long it waited


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A published signal is stored. ``seconds`` is what that took, ``attempts`` the sends.

    ``subscriptions``: where it was routed to; None where the broker does not tell. ``time`` is the CloudEvents
    attribute. ``data``: the captured payload as JSON; ``cut``: whether something was left out of it.
    """

    kind: ClassVar[str] = "accepted"
    signal: str
    type: str
    source: str
    subject: str | None = None
    time: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    subscriptions: tuple[str, ...] | None = None
    data: str | None = None
    cut: bool = False
    attempts: int = 1
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unroutable:
    """A published signal matched no subscription; nothing is stored."""

    kind: ClassVar[str] = "unroutable"
    signal: str
    type: str
    source: str
    subject: str | None = None
    time: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    data: str | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Requested:
    """A request was sent; ``timeout`` seconds until nobody waits any more."""

    kind: ClassVar[str] = "requested"
    signal: str
    type: str
    source: str
    subject: str | None = None
    time: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    data: str | None = None
    cut: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replied:
    """A request ended, as ``side`` saw it: an outcome of `signalbus.brokers.base.AnswerKind`, the error if any.

    ``seconds``: work in the responder's handler, or the whole wait of the requester. ``responder``: its session, where
    the requester knows it.
    """

    kind: ClassVar[str] = "replied"
    signal: str
    type: str
    side: str
    outcome: str
    seconds: float | None = None
    error: str = ""
    message: str = ""
    responder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A delivery reached a handler. ``queued``: seconds from when it could be handed out, by the teller's clock."""

    kind: ClassVar[str] = "delivered"
    signal: str
    type: str
    subscription: str
    attempt: int = 1
    crashes: int = 0
    queued: float | None = None
    causationid: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Acked:
    """A handler returned, and the broker has recorded it. ``seconds`` of work."""

    kind: ClassVar[str] = "acked"
    signal: str
    type: str
    subscription: str
    attempt: int = 1
    crashes: int = 0
    seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """An attempt failed; the next one comes ``delay`` seconds later."""

    kind: ClassVar[str] = "retried"
    signal: str
    type: str
    subscription: str
    attempt: int = 1
    crashes: int = 0
    seconds: float | None = None
    error: str = ""
    message: str = ""
    delay: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """A delivery was given up and kept as a dead letter. ``reason`` is a `signalbus.delivery.DeadReason`."""

    kind: ClassVar[str] = "dead"
    signal: str
    type: str
    subscription: str
    attempt: int = 1
    crashes: int = 0
    seconds: float | None = None
    reason: str = ""
    detail: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A delivery was given back untouched; not an attempt."""

    kind: ClassVar[str] = "released"
    signal: str
    type: str
    subscription: str
    attempt: int = 1
    crashes: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A dead letter went back to its subscription, at the wish of ``by``."""

    kind: ClassVar[str] = "replayed"
    signal: str
    type: str
    subscription: str
    by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUp:
    """A bus connected."""

    kind: ClassVar[str] = "session_up"
    session: str
    name: str = ""
    host: str = ""
    pid: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionDown:
    """A session ended; ``reason`` is a `signalbus.sessions.DownReason`, ``unsettled`` what it held."""

    kind: ClassVar[str] = "session_down"
    session: str
    reason: str = ""
    name: str = ""
    unsettled: int | None = None


Publication = Accepted | Unroutable | Requested
Settled = Acked | Retried | Dead | Released
DeliveryStep = Delivered | Settled | Replayed
SignalStep = Publication | DeliveryStep | Replied
SessionStep = SessionUp | SessionDown
Step = SignalStep | SessionStep

_ALL: tuple[type[Step], ...] = (
    *(Accepted, Unroutable, Requested, Replied),
    *(Delivered, Acked, Retried, Dead, Released, Replayed),
    *(SessionUp, SessionDown),
)
STEPS: dict[str, type[Step]] = {step.kind: step for step in _ALL}
FIELDS: dict[str, tuple[str, ...]] = {step.kind: tuple(field.name for field in fields(step)) for step in _ALL}
SESSION_STEPS = frozenset({SessionUp.kind, SessionDown.kind})
#: Kinds that make a signal one of those that failed; a reply does unless its outcome is ``reply``.
FAILED_STEPS = frozenset({Unroutable.kind, Retried.kind, Dead.kind})


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who tells: one recorder, in one session. ``recorder`` stays the same when its bus gets a new session.

    With a level below ``all``, or a ``share`` below 1, the absence of a fact says nothing.
    """

    recorder: str
    session: str
    name: str = ""
    host: str = ""
    pid: int = 0
    level: str = Level.ALL.value
    share: float = 1.0

    @property
    def complete(self) -> bool:
        """Whether this recorder tells everything it sees."""
        return self.level == Level.ALL and self.share >= 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One step, as one recorder saw it.

    ``sequence`` grows with every fact of the recorder: it orders them whatever the clock does. ``at``: seconds since
    1970, by the clock of the recorder's machine.
    """

    origin: Origin
    sequence: int
    at: float
    step: Step

    @property
    def id(self) -> str:
        """What makes the fact unique: storing it twice changes nothing."""
        return f"{self.origin.recorder}/{self.sequence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Facts of one recorder in one session, numbered from ``first`` on. ``dropped``: what it had no room for so far."""

    origin: Origin
    first: int
    rows: Sequence[Row]
    dropped: int = 0

    def facts(self) -> list[Fact]:
        """Return the facts as values."""
        return [to_fact(self.origin, self.first + index, row) for index, row in enumerate(self.rows)]


def to_fact(origin: Origin, sequence: int, row: Row) -> Fact:
    """Return a row as a fact; the row has been checked, see `wire.decode`."""
    kind, at = row[0], row[1]
    assert isinstance(kind, str)
    assert isinstance(at, float | int)
    values: dict[str, object] = dict(zip(FIELDS[kind], row[2:], strict=False))
    if isinstance(names := values.get("subscriptions"), list | tuple):
        values["subscriptions"] = tuple(cast("list[str]", names))  # JSON has no tuples
    step = STEPS[kind](**values)  # type: ignore[arg-type]  # checked when the row was decoded
    return Fact(origin=origin, sequence=sequence, at=float(at), step=step)


def to_row(at: float, step: Step) -> Row:
    """Return a step as a row."""
    return (step.kind, at, *(getattr(step, name) for name in FIELDS[step.kind]))
