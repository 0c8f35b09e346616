"""What the writer thread remembers between transactions. Anything read from the database can be read again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ...sessions import DownReason, SessionInfo
from . import store
from .claims import Batch, Claimant
from .clock import Clock
from .files import Files
from .sessions import SessionLock
from .topology import Topology


@dataclass(frozen=True, slots=True, eq=False)
class Duty:
    """That we respond to a type; compared by identity, as there may be several for one."""

    type: str


@dataclass(slots=True, eq=False)
class Desk:
    """One per broker; used by the writer thread only, except the counters, which others may read."""

    files: Files
    clock: Clock
    info: SessionInfo
    lock: SessionLock | None = None
    socket: str = ""  # for hints
    address: str = ""  # for requests
    session: int = 0
    reason: DownReason = DownReason.NORMAL  # why we leave, once we do
    duties: list[Duty] = field(default_factory=list[Duty])

    attentive: bool = False  # our row says that we want hints about sessions
    watched: frozenset[str] = frozenset()  # sessions whose end somebody waits for
    watches_all: bool = False
    departure: int = 0  # the newest one that was reported, while any are
    # Temporary subscriptions of ours, to be restored if others took us for dead.
    temporary: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    topology: Topology = field(default_factory=lambda: Topology(counter=-1))
    next_seq: int = 1
    version: int = -1  # `store.data_version` at the last transaction
    purging: bool = True  # there may be deliveries of deleted subscriptions left

    claimants: list[Claimant] = field(default_factory=list[Claimant])
    unread: list[Batch] = field(default_factory=list[Batch])
    batch: int = 0
    promising: set[int] = field(default_factory=set[int])  # subscriptions of ours that may have ready deliveries
    due: dict[int, float] = field(default_factory=dict[int, float])  # when their next delayed delivery is due

    patience: dict[int, float] = field(default_factory=dict[int, float])  # when we claim what others did not want

    short_of_space: str = ""  # why publishes are refused, if they are
    records: bool = False  # facts were appended here
    spooled: bool = True  # facts may wait to be filed
    ledger_trouble: str = ""  # why facts could not be stored or filed, if so
    counters: Counter[str] = field(default_factory=Counter[str])

    def forget(self) -> None:
        """Trust nothing that was read: a transaction was rolled back, or the connection is another."""
        self.topology = Topology(counter=-1)
        self.version = -1
        self.purging = True
        self.promising.update(self.serving())

    @property
    def watches(self) -> bool:
        """Whether the end of any session is waited for."""
        return self.watches_all or bool(self.watched)

    def serving(self) -> dict[int, list[Claimant]]:
        """Return our consumers by subscription."""
        serving: dict[int, list[Claimant]] = {}
        for claimant in self.claimants:
            if claimant.subscription:
                serving.setdefault(claimant.subscription, []).append(claimant)
        return serving

    def note_due(self, connection: store.Connection, subscription: int) -> None:
        """Remember when the next delayed delivery of a subscription is due."""
        due = store.next_due(connection, subscription)
        if due is None:
            self.due.pop(subscription, None)
        else:
            self.due[subscription] = due

    def seconds_to_due(self) -> float | None:
        """Return the seconds until a delayed delivery of ours is due; None if there is none."""
        if not self.due:
            return None
        return max(0.0, min(self.due.values()) - self.clock.boottime())
