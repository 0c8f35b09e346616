"""What may be asked of the store, and what it answers. Values only; knows no SQL."""

from __future__ import annotations

from dataclasses import dataclass

from .model import SignalTrace, State

MIN_PREFIX = 6  # characters of an id
CANDIDATES = 20  # that an ambiguous prefix lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which signals to list, newest first; what is not given does not matter.

    ``since`` and ``until``: seconds since 1970. ``patterns``: of types, one must match. ``states``: at some
    subscription, or at ``subscription``. ``failed``: those of which something failed, now or ever. ``where``: paths and
    texts that must all be equal, see `signalbus.trace.fields`. ``before``: go on from `Page.next`.
    """

    since: float | None = None
    until: float | None = None
    patterns: tuple[str, ...] = ()
    subscription: str | None = None
    states: frozenset[State] = frozenset()
    failed: bool = False
    where: tuple[tuple[str, str], ...] = ()
    before: int | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A signal in a list, without what it caused. ``at``: when it was published, or first heard of."""

    signal: SignalTrace
    at: float
    failed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Signals, newest first. ``next``: where to go on, None at the end.

    Not ``complete``: as many were looked at as one page may cost; there may be more than these, see ``next``.
    """

    signals: tuple[Listed, ...]
    next: int | None = None
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A signal whose id has a prefix."""

    id: str
    type: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStats:
    """How much is stored. ``bytes``: of facts and payloads, roughly; ``dropped``: facts that recorders had no room for.

    ``oldest``: the time of the oldest signal, None if there is none.
    """

    facts: int
    bytes: int
    dropped: int
    oldest: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept: signals younger than ``seconds``, and at most about ``bytes`` of facts and payloads."""

    seconds: float | None = None
    bytes: int | None = None
