"""What a dead letter is, what may be asked about them, and what a keeper of dead letters does. Values and a seam.

A dead letter is one subscription's copy of one signal: a signal that dies again after a replay is the same dead
letter, which has then died twice. Its states::

    dead ── replay ──> waiting ── sent ──> replaying ── its subscription acked it ──> acked
      ^  <── cancel ──    │  (no such subscription, ...)  │
      │ <─────────────────┴───────── died again ─────────┘
      └── discard ──> discarded ── restore ──> dead          (restore also frees what is stuck in replaying)

What was acked or discarded and dies again, as its publisher repeated himself, is dead again. Nothing is ever deleted
but what was acked a month ago.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from ..codec import EncodedSignal
from ..delivery import DeadReason, Failure

MIN_PREFIX = 6  # characters of an id
DEFAULT_RATE = 50.0  # replays a second


class LetterState(StrEnum):
    """Where a dead letter stands."""

    DEAD = "dead"  # nobody has decided what becomes of it
    WAITING = "waiting"  # claimed by a replay, and not sent yet
    REPLAYING = "replaying"  # back in the queue of its subscription, and not settled yet
    ACKED = "acked"  # replayed, and its subscription acked it
    DISCARDED = "discarded"  # somebody decided to do without; can be restored


#: What `DeadLetters.groups` and lists show unless asked for others: what still wants somebody's attention.
OPEN_STATES = frozenset({LetterState.DEAD, LetterState.WAITING, LetterState.REPLAYING})


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterSummary:
    """A dead letter in a list.

    ``error`` is the type of the last exception ("" if it died of none), ``place`` where that was raised
    (``billing.py:12 in charge``, "" if not known), ``group`` the id of its group. ``died`` is when it died last, for
    the ``deaths``-th time. ``changed`` and ``by``: when its state changed last, and who did that. ``note``: why it is
    where it is, e.g. why a replay was not possible.
    """

    id: str
    state: LetterState
    subscription: str
    signal: str
    type: str
    reason: DeadReason
    detail: str
    error: str
    place: str
    group: str
    attempt: int
    crashes: int
    deaths: int
    died: datetime
    changed: datetime
    by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What somebody did, or what happened. ``letter`` is empty for what was done to many: ``count`` says to how many.

    ``by`` is empty for what happens by itself.
    """

    at: datetime
    by: str
    action: str  # replay, cancel, discard, restore; sent, acked, dead again, returned, interrupted
    letter: str = ""
    replay: str = ""
    count: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A whole dead letter: the signal as it was, every failed attempt, and what was done to it, oldest first."""

    summary: LetterSummary
    content: EncodedSignal
    history: tuple[Failure, ...]
    audit: tuple[AuditEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterGroup:
    """Dead letters of one subscription that died of the same error at the same place (or for the same reason).

    ``counts`` by state. ``types``: up to a hundred of them. ``sample`` is the newest detail.
    """

    id: str
    subscription: str
    reason: DeadReason
    error: str
    place: str
    counts: dict[LetterState, int]
    types: tuple[str, ...]
    oldest: datetime
    newest: datetime
    sample: str

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterQuery:
    """Which dead letters; what is empty does not matter, what is given must all fit.

    ``ids`` and ``group`` are whole ids. ``patterns``: of types, one must match. ``error``: name of the exception, also
    without its module. ``since`` and ``until``: seconds since 1970, of the last death. ``after``: go on from
    `LetterPage.next`; newest first.
    """

    ids: tuple[str, ...] = ()
    group: str = ""
    subscription: str = ""
    patterns: tuple[str, ...] = ()
    error: str = ""
    signal: str = ""
    states: frozenset[LetterState] = OPEN_STATES
    since: float | None = None
    until: float | None = None
    after: str = ""
    limit: int = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterPage:
    """Dead letters, newest first; ``next`` is where to go on, empty at the end; ``total`` counts all that fit."""

    letters: tuple[LetterSummary, ...]
    total: int
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How far a replay is. The set is frozen when it is asked for: ``total`` dead letters, claimed all at once.

    ``waiting`` are not sent yet, ``pending`` are sent and not settled. ``returned`` could not be sent, e.g. as their
    subscription is gone: they are dead as before, with a note. ``taken`` were asked for as well, and belong to another
    replay already. ``cancelled`` are also those that were restored while pending, or whose sender ended before they
    were sent. ``rate``: a second.
    """

    id: str
    by: str
    started: datetime
    rate: float
    total: int
    waiting: int
    pending: int
    acked: int
    died_again: int
    returned: int
    cancelled: int
    taken: int = 0

    @property
    def sending(self) -> bool:
        """Whether anything is still to be sent."""
        return self.waiting > 0

    @property
    def settled(self) -> bool:
        """Whether the end of each is known."""
        return self.waiting == 0 and self.pending == 0


class DeadLetters(Protocol):
    """Keeps dead letters. Every change is a compare-and-set on the state, so of two who want the same, one gets it.

    Raises `BrokerError` where the broker or the store has trouble, and `ConfigError` for a question that cannot be.
    ``by`` names who asks, for the audit.
    """

    async def groups(self, query: LetterQuery) -> Sequence[LetterGroup]:
        """Return the groups of what fits, the newest first; ``after`` and ``limit`` do not matter."""
        ...

    async def page(self, query: LetterQuery) -> LetterPage:
        """Return what fits, newest first."""
        ...

    async def find(self, prefix: str) -> Sequence[LetterSummary]:
        """Return up to 20 dead letters whose id, or whose signal's id, begins like this."""
        ...

    async def get(self, letter: str) -> Letter | None:
        """Return a dead letter by its whole id."""
        ...

    async def replay(self, query: LetterQuery, *, by: str, rate: float = DEFAULT_RATE) -> Replay:
        """Claim all that fit and are dead, and begin to send each to the subscription that failed, with its own id.

        Only what is ``dead`` is claimed, whatever ``states`` says; ``after`` and ``limit`` do not matter. Attempts
        begin at 1. Returns at once; `progress` tells how it goes on. What was claimed and not sent when its process
        died is sent or dead again, never forgotten. Raises `ConfigError` unless 0 < ``rate`` <= 10,000.
        """
        ...

    async def progress(self, replay: str) -> Replay | None:
        """Return how far a replay is."""
        ...

    async def replays(self, limit: int = 20) -> Sequence[Replay]:
        """Return the newest replays."""
        ...

    async def cancel(self, replay: str, *, by: str) -> int:
        """Make dead again what a replay has certainly not sent yet; return how many that were."""
        ...

    async def discard(self, query: LetterQuery, *, by: str, note: str = "") -> int:
        """Discard all that fit and are dead; return how many. Nothing is deleted: `restore` brings them back."""
        ...

    async def restore(self, query: LetterQuery, *, by: str) -> int:
        """Make discarded ones dead again, or those whose replay never came to an end; return how many.

        ``states`` must name which of the two, discarded or replaying; the latter by whole ids only, as a copy may be
        on its way still. Raises `ConfigError` otherwise.
        """
        ...

    async def audit(self, limit: int = 100) -> Sequence[AuditEntry]:
        """Return what was done, the newest first; of what was sent or acked, only each `Letter` tells."""
        ...

    async def aclose(self) -> None:
        """Stop sending, and let go of what was opened. Idempotent."""
        ...
