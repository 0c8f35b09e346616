"""The JSON of traces, as types: what `signalbus.trace.rendering_json` writes. For the OpenAPI document."""

from __future__ import annotations

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from .values import Plain


class Who(TypedDict):
    """A session, and its process."""

    session: str
    name: str
    host: str
    pid: int


class AttemptJson(TypedDict):
    """One time that a handler had the delivery. Times are RFC 3339; what is not known is null."""

    attempt: int
    replay: int
    crashes: int
    end: str
    began_at: str | None
    ended_at: str | None
    queued_seconds: float | None
    work_seconds: float | None
    error: str
    delay_seconds: float | None
    by: Who | None
    inferred: list[str]


class Gap(TypedDict):
    """Attempts that must have been."""

    first: int
    last: int


class DeliveryJson(TypedDict):
    """What became of the signal at one subscription."""

    subscription: str
    state: str
    since: str | None
    due: str | None
    unrecorded_losses: int
    unrecorded_attempts: list[Gap]
    replayed_at: list[str | None]
    attempts: list[AttemptJson]


class ReplyJson(TypedDict):
    """How a request ended."""

    outcome: str
    error: str
    work_seconds: float | None
    waited_seconds: float | None
    responder: str
    inferred: list[str]


class SignalJson(TypedDict):
    """One signal, and what it caused. ``data`` is what was recorded of its payload."""

    id: str
    type: str
    source: str
    subject: str | None
    time: str | None
    correlationid: str | None
    causationid: str | None
    traceparent: str | None
    published_at: str | None
    published_by: Who | None
    inferred: list[str]
    data: object
    data_cut: bool
    request: bool
    unroutable: bool
    summary: str
    states: list[str]
    cause: str | None
    deliveries: list[DeliveryJson]
    reply: ReplyJson | None
    children: list[SignalJson]


class SkewJson(TypedDict):
    """Two clocks that disagree."""

    early: str
    late: str
    seconds: float


class TraceJson(TypedDict):
    """A signal with everything it caused."""

    schema_version: int
    complete: bool
    left_out: int
    skews: list[SkewJson]
    signal: SignalJson


class ListedJson(SignalJson):
    """A signal in a list. ``at``: when it was published, or first heard of. ``facts`` only where they are asked for."""

    at: str | None
    failed: bool


class FactsJson(TypedDict):
    """Facts in batches, as `signalbus.ledger.wire` writes them. ``behind``: facts that are not sorted in yet."""

    schema_version: int
    behind: int
    batches: list[dict[str, object]]


class ListedFactsJson(TypedDict):
    """A signal in a list, as facts; ``at`` in seconds since 1970."""

    id: str
    at: float
    failed: bool
    batches: list[dict[str, object]]


class SignalsJson(TypedDict):
    """A page of signals, newest first. ``next``: where to go on (``before``). ``facts``: null unless asked for."""

    schema_version: int
    signals: list[ListedJson]
    facts: list[ListedFactsJson] | None
    next: int | None
    complete: bool
    behind: int


class StoreJson(TypedDict):
    """How much is stored. ``oldest`` in seconds since 1970."""

    facts: int
    bytes: int
    dropped: int
    oldest: float | None
    behind: int


class MatchJson(TypedDict):
    """Whether a subscription gets signals of a type, and why."""

    name: str
    matches: bool
    patterns: list[str]
    matching_patterns: list[str]
    reason: str
    durable: bool
    consumers: int
    ready: int


class ExplainedJson(TypedDict):
    """Where a signal of a type would go."""

    type: str
    routable: bool
    subscriptions: list[MatchJson]


EXPLAINED = Plain(TypeAdapter(tuple[ExplainedJson]))
FACTS = Plain(TypeAdapter(tuple[FactsJson]))
SIGNALS = Plain(TypeAdapter(tuple[SignalsJson]))
STORE = Plain(TypeAdapter(tuple[StoreJson]))
TRACE = Plain(TypeAdapter(tuple[TraceJson]))
