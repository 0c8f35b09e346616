"""What a trace is made of. Values only.

What was recorded refers to its `Fact`; where that reference is None, the thing is *inferred*: something else that was
recorded cannot have happened without it. Times are seconds since 1970 by the clock of whoever told, durations seconds,
never negative.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from ..ledger import Fact, Origin


class State(StrEnum):
    """Where a signal stands at one subscription; the last four are of signals that go to none."""

    WAITING = "waiting"  # to be handed out
    IN_HAND = "in hand"  # a handler has it
    RETRYING = "retrying"  # waits for its next attempt
    ACKED = "acked"
    DEAD = "dead"
    UNROUTABLE = "unroutable"
    ASKED = "asked"  # a request without an answer, as far as anybody told
    REPLIED = "replied"
    FAILED = "failed"  # a request that got no reply, or an error


class End(StrEnum):
    """How an attempt ended."""

    RUNNING = "running"
    ACKED = "acked"
    RETRIED = "retried"
    DEAD = "dead"
    RELEASED = "released"
    LOST = "lost"  # its subscriber died, or lost the broker
    UNKNOWN = "unknown"  # nobody told, and nothing follows from what they told


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One time that a handler had the delivery.

    ``began`` and ``ended`` are what was told; ``ended`` is the end of the session for a lost one. ``queued``: the wait
    before it, since it could be handed out; ``work``: time in the handler. ``replay`` counts the replays before it.
    """

    number: int
    end: End
    origin: Origin | None
    began: Fact | None = None
    ended: Fact | None = None
    crashes: int = 0
    replay: int = 0
    queued: float | None = None
    work: float | None = None
    error: str = ""
    delay: float | None = None

    @property
    def inferred(self) -> tuple[str, ...]:
        """What of it nobody told."""
        start = ("start",) if self.began is None else ()
        open_end = self.end in (End.RUNNING, End.UNKNOWN)
        return start if self.ended is not None or open_end else (*start, "end")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Attempts that must have been, as a later one is known: ``first`` to ``last``."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of the signal at one subscription. ``attempts`` and ``gaps`` in their order.

    ``crashes``: losses that were counted, but that no attempt here stands for. ``since``: when the state began, None if
    nobody told. ``due``: when the next attempt is to come.
    """

    subscription: str
    state: State
    attempts: tuple[Attempt, ...] = ()
    gaps: tuple[Gap, ...] = ()
    replays: tuple[Fact, ...] = ()
    crashes: int = 0
    since: float | None = None
    due: float | None = None

    @property
    def last(self) -> Attempt | None:
        """The newest attempt that is known."""
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How a request ended. ``work`` in the responder's handler, ``waited`` by the requester; None if nobody told."""

    outcome: str
    error: str = ""
    work: float | None = None
    waited: float | None = None
    responder: str = ""
    origin: Origin | None = None
    answered: Fact | None = None
    received: Fact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalTrace:
    """One signal, and what it caused.

    ``published`` is what was told of its publication: None if that is inferred. ``cause``: the subscription whose
    handler published it, where that is certain. ``data`` is the captured payload.
    """

    id: str
    type: str = ""
    source: str = ""
    subject: str | None = None
    time: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    data: str | None = None
    cut: bool = False
    request: bool = False
    unroutable: bool = False
    published: Fact | None = None
    deliveries: tuple[Delivery, ...] = ()
    reply: Reply | None = None
    cause: str | None = None
    children: tuple[SignalTrace, ...] = ()

    @property
    def at(self) -> float | None:
        """When it was published."""
        return self.published.at if self.published else None

    @property
    def states(self) -> tuple[State, ...]:
        """Where it stands, at each of its subscriptions; a request or an unroutable signal has one state."""
        if self.deliveries:
            return tuple(delivery.state for delivery in self.deliveries)
        if self.request:
            return (_state_of(self.reply),)
        return (State.UNROUTABLE,) if self.unroutable else ()

    @property
    def summary(self) -> str:
        """One line: ``2 acked, 1 outstanding``."""
        counts = Counter(_WORDS.get(state, state.value) for state in self.states)
        return ", ".join(f"{counts[word]} {word}" for word in _ORDER if counts[word]) or "no delivery known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skew:
    """Two clocks that disagree: what happened later at ``late`` says it was ``seconds`` earlier than at ``early``.

    The same host twice: its clock was set back.
    """

    early: str
    late: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A signal with everything it caused.

    ``complete``: whether all who told of it tell everything, so that the absence of a fact means something.
    ``left_out``: signals beyond the bounds of a trace.
    """

    root: SignalTrace
    skews: tuple[Skew, ...] = ()
    complete: bool = True
    left_out: int = 0


_OUTSTANDING = "outstanding"
_WORDS = {
    **dict.fromkeys((State.WAITING, State.IN_HAND, State.RETRYING), _OUTSTANDING),
    State.ASKED: "unanswered",
}
_ORDER = ("acked", "dead", _OUTSTANDING, "unroutable", "replied", "failed", "unanswered")


def _state_of(reply: Reply | None) -> State:
    if reply is None:
        return State.ASKED
    return State.REPLIED if reply.outcome == "reply" else State.FAILED
