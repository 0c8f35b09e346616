"""What the event loop asks of the writer thread, one class each. They know no SQL; `group.Group` carries them out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from ...delivery import Settlement
from ...errors import Backpressure, BrokerUnavailable, SignalBusError
from ...ledger import Batch
from ..base import PublishOutcome, PublishResult, SubscriptionSpec
from .claims import Claim, Claimant
from .desk import Duty
from .records import Record
from .store import Connection

if TYPE_CHECKING:  # the group calls the operation, which answers through the group
    from .group import Group

T = TypeVar("T")

_FACT_BYTES = 120  # about


class Operation(Generic[T]):
    """One request with its answer. The future belongs to the event loop, all else to the writer thread.

    ``deadline`` and ``since`` are in seconds of `time.monotonic`. A persistent operation is never given up while the
    broker is open: what it settles has happened already.
    """

    __slots__ = ("deadline", "error", "future", "result", "since", "size", "weight")
    persistent: ClassVar[bool] = False

    def __init__(self, future: asyncio.Future[T] | None, deadline: float) -> None:
        self.future = future
        self.deadline = deadline
        self.since = 0.0  # when it was submitted
        self.size: int = 0
        self.weight = 1  # how much work it is, in signals
        self.result: T | None = None
        self.error: SignalBusError | None = None

    def apply(self, group: Group) -> None:
        """Do it in the group's transaction; raises `ConfigError` before it has changed anything."""
        raise NotImplementedError

    def resolve(self) -> None:
        """Give the answer; on the event loop."""
        future = self.future
        if future is None or future.done():  # the caller has gone
            return
        if self.error is not None:
            future.set_exception(self.error)
        else:
            future.set_result(self.result)  # type: ignore[arg-type]  # None where T is None

    def fail(self, error: SignalBusError, *, certain: bool) -> None:
        """Set the answer after an error; ``certain`` says that it left no trace."""
        _ = certain
        self.error = error

    def expire(self, reason: str, *, started: bool) -> None:
        """Answer now, on the event loop, as the deadline has passed; ``started``: it may still take effect."""
        future = self.future
        if future is not None and not future.done():
            future.set_exception(BrokerUnavailable(f"{reason}; it may still take effect" if started else reason))


class Publish(Operation[Sequence[PublishOutcome]]):
    """Store signals."""

    __slots__ = ("records",)

    def __init__(
        self,
        future: asyncio.Future[Sequence[PublishOutcome]] | None,
        deadline: float,
        records: Sequence[Record],
    ) -> None:
        super().__init__(future, deadline)
        self.records = records
        self.weight = len(records)
        for _, head, body, _ in records:
            self.size += len(head) + len(body)

    def apply(self, group: Group) -> None:
        group.publish(self)

    def answer(self, outcome: PublishOutcome) -> None:
        """Set the same outcome for all of them."""
        self.error = None
        self.result = [outcome] * len(self.records)

    def refuse(self, reason: str) -> None:
        """Say that there was no room."""
        self.answer(PublishOutcome(PublishResult.REFUSED, reason))

    def fail(self, error: SignalBusError, *, certain: bool) -> None:
        if certain:
            super().fail(error, certain=True)
        else:
            self.answer(PublishOutcome(PublishResult.UNKNOWN, str(error)))

    def expire(self, reason: str, *, started: bool) -> None:
        future = self.future
        if started and future is not None and not future.done():
            future.set_result([PublishOutcome(PublishResult.UNKNOWN, reason)] * len(self.records))
        else:
            super().expire(reason, started=started)


class Append(Operation[None]):
    """Store facts for the ledger. ``done`` learns on the event loop how many there were, and whether they are stored.

    It is given up with the transaction that it is in: a fact must not be tried at the expense of a signal.
    """

    __slots__ = ("batches", "done", "facts")

    def __init__(self, batches: Sequence[Batch], facts: int, done: Callable[..., None]) -> None:
        super().__init__(None, float("inf"))
        self.batches = batches
        self.facts = facts
        self.done = done
        self.size = facts * _FACT_BYTES

    def apply(self, group: Group) -> None:
        group.keep(self)

    def resolve(self) -> None:
        self.done(self.facts, stored=self.error is None)

    def expire(self, reason: str, *, started: bool) -> None:
        if not started:
            self.done(self.facts, stored=False)


class Settle(Operation[bool]):
    """Carry out the settlement of one delivery."""

    __slots__ = ("claim", "settlement")
    persistent = True

    def __init__(self, future: asyncio.Future[bool], claim: Claim, settlement: Settlement) -> None:
        super().__init__(future, float("inf"))
        self.claim = claim
        self.settlement = settlement

    def apply(self, group: Group) -> None:
        group.settle(self)


class Declare(Operation[None]):
    """Make a subscription exist."""

    __slots__ = ("subscription",)

    def __init__(self, future: asyncio.Future[None], deadline: float, subscription: SubscriptionSpec) -> None:
        super().__init__(future, deadline)
        self.subscription = subscription

    def apply(self, group: Group) -> None:
        group.registry.declare(self.subscription)


class Delete(Operation[None]):
    """Delete a subscription."""

    __slots__ = ("name",)

    def __init__(self, future: asyncio.Future[None], deadline: float, name: str) -> None:
        super().__init__(future, deadline)
        self.name = name

    def apply(self, group: Group) -> None:
        group.registry.delete(self.name)


class Serve(Operation[None]):
    """Count a consumer in, and claim for it."""

    __slots__ = ("claimant",)

    def __init__(self, future: asyncio.Future[None], deadline: float, claimant: Claimant) -> None:
        super().__init__(future, deadline)
        self.claimant = claimant

    def apply(self, group: Group) -> None:
        group.registry.serve(self.claimant)


class Quit(Operation[None]):
    """Count a consumer out, and claim no more for it; it keeps what it holds."""

    __slots__ = ("claimant",)
    persistent = True

    def __init__(self, future: asyncio.Future[None], claimant: Claimant) -> None:
        super().__init__(future, float("inf"))
        self.claimant = claimant

    def apply(self, group: Group) -> None:
        group.registry.quit(self.claimant)


class GiveBack(Operation[None]):
    """Release deliveries as they were; all that a consumer holds if none are named."""

    __slots__ = ("claimant", "claims")
    persistent = True

    def __init__(
        self, future: asyncio.Future[None] | None, claimant: Claimant, claims: Sequence[Claim] | None = None
    ) -> None:
        super().__init__(future, float("inf"))
        self.claimant = claimant
        self.claims = claims

    def apply(self, group: Group) -> None:
        group.give_back(list(self.claimant.unsettled.values()) if self.claims is None else self.claims)


class Bury(Operation[None]):
    """End the sessions of dead processes."""

    __slots__ = ("dead",)

    def __init__(self, dead: Sequence[int]) -> None:
        super().__init__(None, float("inf"))
        self.dead = dead

    def apply(self, group: Group) -> None:
        group.registry.bury(self.dead)


class Watch(Operation[bool]):
    """Watch a session; False if there is none of that name."""

    __slots__ = ("session",)

    def __init__(self, future: asyncio.Future[bool], deadline: float, session: str) -> None:
        super().__init__(future, deadline)
        self.session = session

    def apply(self, group: Group) -> None:
        self.result = group.registry.watch(self.session)


class WatchAll(Operation[int]):
    """Watch all sessions. ``begin`` is called with the newest departure of before, ahead of any news behind it."""

    __slots__ = ("begin",)

    def __init__(self, future: asyncio.Future[int], deadline: float, begin: Callable[[int], None]) -> None:
        super().__init__(future, deadline)
        self.begin = begin

    def resolve(self) -> None:
        future = self.future
        if future is not None and not future.done() and self.error is None and self.result is not None:
            self.begin(self.result)
        super().resolve()

    def apply(self, group: Group) -> None:
        self.result = group.registry.watch_all()


class Respond(Operation[None]):
    """Count a responder in."""

    __slots__ = ("duty",)

    def __init__(self, future: asyncio.Future[None], deadline: float, duty: Duty) -> None:
        super().__init__(future, deadline)
        self.duty = duty

    def apply(self, group: Group) -> None:
        group.registry.respond(self.duty)


class Dismiss(Operation[None]):
    """Count a responder out."""

    __slots__ = ("duty",)
    persistent = True

    def __init__(self, future: asyncio.Future[None], duty: Duty) -> None:
        super().__init__(future, float("inf"))
        self.duty = duty

    def apply(self, group: Group) -> None:
        group.registry.dismiss(self.duty)


class Change(Operation[T]):
    """Change something else in the group's transaction. ``change`` may raise `Backpressure` before it changes anything.

    It may be called again, if the transaction failed.
    """

    __slots__ = ("change",)

    def __init__(self, future: asyncio.Future[T], deadline: float, change: Callable[[Group], T]) -> None:
        super().__init__(future, deadline)
        self.change = change

    def apply(self, group: Group) -> None:
        try:
            self.result = self.change(group)
        except Backpressure as error:
            self.error = error


class Look(Operation[T]):
    """Read something; needs no write lock and no transaction of its own."""

    __slots__ = ("read",)

    def __init__(self, future: asyncio.Future[T], deadline: float, read: Callable[[Connection], T]) -> None:
        super().__init__(future, deadline)
        self.read = read
