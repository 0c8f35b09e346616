"""One transaction: a group of operations, then what is due, then claims for our consumers.

Begun, committed and rolled back by `rounds.Rounds`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import Any

from ...delivery import Ack, DeadLetter, RetryLater
from ...errors import ConfigError, StorageError
from ...ledger import Batch as Facts
from ..base import PublishOutcome
from . import spool, store
from .changes import Changes
from .claims import Batch, Claim, Claimant
from .desk import Desk
from .failures import explain
from .operations import Append, Operation, Publish, Settle
from .records import Record, pack_history, seal
from .registry import Registry

_CLAIM_LIMIT = 1_000  # deliveries a subscription and transaction: bounds how long others wait for the lock
_PURGE_LIMIT = 1_000
_ROW_BYTES = 400  # what a changed row adds to the log, roughly: several share a page
_PATIENCE_SECONDS = 0.02  # left to less busy consumers of other processes by one whose hands are full


class Group:
    """See the module. Publishes and acks are collected, and written by `flush`."""

    def __init__(self, connection: store.Connection, desk: Desk) -> None:
        self._connection = connection
        self._desk = desk
        self.changes = Changes(connection, desk)
        self._registry = Registry(self.changes)
        self._values: list[object] = []  # of signals to insert, flat
        self._queued: dict[int, list[int]] = {}  # subscription -> signals
        self._shared: dict[int, list[int]] = {}  # number of subscriptions -> signals
        self._acks: dict[int, list[Settle]] = {}  # subscription -> acks
        self._facts: list[Append] = []

    def run(self, operations: Iterable[Operation[Any]], *, claiming: bool = True) -> None:
        """Do everything but commit."""
        self._registry.refresh()
        self.changes.next_seq = self._desk.next_seq
        for operation in operations:
            operation.error = None  # it may have been tried before
            try:
                operation.apply(self)
            except ConfigError as error:
                operation.error = error
        self._flush()
        self._wake_delayed()
        if self._desk.purging:
            self._desk.purging = store.purge(self._connection, _PURGE_LIMIT)
        if claiming:
            self._claim()
        self._store_facts()

    # Operations

    @property
    def registry(self) -> Registry:
        """Changes of who gets what, in order with what was published before."""
        self._flush()
        return self._registry

    @property
    def connection(self) -> store.Connection:
        """The connection, with what was collected so far in its tables."""
        self._flush()
        return self._connection

    def publish(self, operation: Publish) -> None:
        """Route signals and collect them for insertion."""
        if self._desk.short_of_space:
            operation.refuse(self._desk.short_of_space)
            return
        known = self._desk.topology.routes.get
        values, queued, seq = self._values, self._queued, self.changes.next_seq
        outcomes: list[PublishOutcome] = []
        for signal_type, head, body, checksum in operation.records:
            route = known(signal_type)
            if route is None:
                route = self._desk.topology.route(signal_type)
            outcomes.append(route.outcome)
            subscriptions = route.subscriptions
            if not subscriptions:
                continue
            fanout = len(subscriptions)
            values += (seq, fanout, seal(checksum, seq, fanout), head, body)
            for subscription in subscriptions:
                if subscription in queued:
                    queued[subscription].append(seq)
                else:
                    queued[subscription] = [seq]
            if fanout > 1:
                self._shared.setdefault(fanout, []).append(seq)
            seq += 1
        self.changes.next_seq = seq
        self.changes.written += operation.size + len(operation.records) * _ROW_BYTES
        operation.result = outcomes

    def requeue(self, subscription: int, record: Record) -> int:
        """Queue a signal for one subscription, whatever that matches; return the number of the new copy."""
        _, head, body, checksum = record
        seq = self.changes.next_seq
        self.changes.next_seq += 1
        self._values += (seq, 1, seal(checksum, seq, 1), head, body)
        self._queued.setdefault(subscription, []).append(seq)
        self.changes.written += len(head) + len(body) + _ROW_BYTES
        return seq

    def settle(self, operation: Settle) -> None:
        """Settle a delivery, if it is still ours; acks are collected."""
        claim, settlement = operation.claim, operation.settlement
        if claim.session != self._desk.session:
            operation.result = False
            return
        if isinstance(settlement, Ack):
            self._acks.setdefault(claim.subscription, []).append(operation)
            return
        operation.result = bool(self._owned(claim.subscription, [claim]))
        if not operation.result:
            return
        if isinstance(settlement, RetryLater):
            self._retry(claim, settlement)
        elif isinstance(settlement, DeadLetter):
            reason = (settlement.reason.value, settlement.detail)
            at = self._desk.clock.wall()
            history = pack_history(settlement.history)
            store.bury(self._connection, claim.subscription, claim.signal, reason, at, history)
            self._forget_signals([claim])
        else:
            store.release(self._connection, claim.subscription, store.listed([claim.signal]))
            self.changes.feed(claim.subscription)
        self.changes.free([claim])

    def give_back(self, claims: Sequence[Claim]) -> None:
        """Release deliveries, as far as they are still ours."""
        self._flush()
        by_subscription: dict[int, list[Claim]] = {}
        for claim in claims:
            if claim.session == self._desk.session and claim.signal in claim.claimant.unsettled:
                by_subscription.setdefault(claim.subscription, []).append(claim)
        for subscription, held in by_subscription.items():
            ours = self._owned(subscription, held)
            store.release(self._connection, subscription, store.listed(claim.signal for claim in ours))
            self.changes.free(held)
            self.changes.feed(subscription)

    def keep(self, operation: Append) -> None:
        """Collect facts: they are stored last, so that nothing depends on them."""
        if self._desk.short_of_space:
            operation.error = StorageError(self._desk.short_of_space)
        else:
            self._facts.append(operation)

    # Steps

    def _flush(self) -> None:
        if self._values:
            store.insert_signals(self._connection, self._values)
            self._values = []
            for fanout, signals in self._shared.items():
                store.insert_fanout(self._connection, fanout, store.listed(signals))
            self._shared = {}
            for subscription, signals in self._queued.items():
                store.insert_ready(self._connection, subscription, store.listed(signals))
                self.changes.feed(subscription)
            self._queued = {}
        if self._acks:
            for subscription, acks in self._acks.items():
                self._ack(subscription, acks)
            self._acks = {}

    def _store_facts(self) -> None:
        """Store facts, unless that cannot be: then the transaction goes on without them."""
        if self._facts:
            self._desk.records = True
        batches: list[Facts] = [batch for operation in self._facts for batch in operation.batches]
        if self._desk.records:
            batches += self.changes.downs
        if not batches:
            return
        try:
            self.changes.written += 2 * spool.store(self._connection, batches)
        except sqlite3.Error as error:
            self._desk.ledger_trouble = f"facts of the ledger cannot be stored: {explain(error)}"
            if not self._connection.in_transaction:
                raise  # SQLite has given up all of it
            for operation in self._facts:
                operation.error = StorageError(self._desk.ledger_trouble)
        else:
            self._desk.spooled = True

    def _ack(self, subscription: int, acks: list[Settle]) -> None:
        ours = self._owned(subscription, [operation.claim for operation in acks])
        if len(ours) == len(acks):
            for operation in acks:
                operation.result = True
        else:
            kept = set(ours)
            for operation in acks:
                operation.result = operation.claim in kept
        store.drop_claims(self._connection, subscription, store.listed(claim.signal for claim in ours))
        self._forget_signals(ours)
        self.changes.free([operation.claim for operation in acks])

    def _owned(self, subscription: int, claims: list[Claim]) -> list[Claim]:
        """Return those of ``claims`` that the database says are ours."""
        session = self._desk.session
        signals = [claim.signal for claim in claims]
        if store.owned(self._connection, subscription, session, store.listed(signals)) == len(claims):
            return claims
        return [c for c in claims if store.owned(self._connection, subscription, session, store.listed([c.signal]))]

    def _forget_signals(self, claims: list[Claim]) -> None:
        self.changes.written += len(claims) * _ROW_BYTES
        for shared in (False, True):
            if signals := [claim.signal for claim in claims if claim.shared is shared]:
                store.forget_signals(self._connection, store.listed(signals), shared=shared)

    def _retry(self, claim: Claim, settlement: RetryLater) -> None:
        history = pack_history(settlement.history)
        delay = settlement.delay.total_seconds()
        if delay <= 0:
            store.retry_now(self._connection, claim.subscription, claim.signal, history)
            self.changes.feed(claim.subscription)
            return
        clock = self._desk.clock
        due = (clock.boottime() + delay, clock.wall() + delay, delay)
        store.retry_later(self._connection, claim.subscription, claim.signal, history, due)
        if any(claimant.subscription == claim.subscription for claimant in self._desk.claimants):
            self._desk.note_due(self._connection, claim.subscription)

    def _wake_delayed(self) -> None:
        desk = self._desk
        if not desk.due:
            return
        now = desk.clock.boottime()
        for subscription in [subscription for subscription, due in desk.due.items() if due <= now]:
            store.wake_delayed(self._connection, subscription, now)
            self.changes.feed(subscription)
            desk.note_due(self._connection, subscription)

    def _claim(self) -> None:
        desk = self._desk
        if desk.unread:  # the connection broke before they were read: first things first
            return
        serving = desk.serving()
        for subscription in list(desk.promising):
            claimants = serving.get(subscription)
            if claimants is None:
                desk.promising.discard(subscription)
                continue
            wanted = min(sum(claimant.credit for claimant in claimants), _CLAIM_LIMIT)
            if wanted > 0:
                self._claim_for(subscription, claimants, wanted)

    def _claim_for(self, subscription: int, claimants: list[Claimant], wanted: int) -> None:
        desk = self._desk
        count, last = store.peek(self._connection, subscription, wanted)
        if count < wanted:
            everybody = max(desk.topology.consumers_of(subscription), len(claimants))
            if count and everybody > len(claimants) and self._others_first(subscription, claimants):
                return
            share = -(-count * len(claimants) // everybody)
            if share < count:
                # Little is there, and others want some of it too. What they leave, the next transaction takes.
                count, last = store.peek(self._connection, subscription, share)
            else:
                desk.promising.discard(subscription)
                self.changes.emptied.add(subscription)
        if count:
            desk.patience.pop(subscription, None)
            desk.batch += 1
            store.claim(self._connection, subscription, last, desk.session, desk.batch)
            self.changes.batches.append(Batch(subscription, desk.session, desk.batch, tuple(claimants)))
            self.changes.written += count * _ROW_BYTES

    def _others_first(self, subscription: int, claimants: list[Claimant]) -> bool:
        """Tell whether to wait a moment, as ours are busy and those of other processes may be less so.

        The busier wait longer, so the work finds the least busy without anybody asking who that is. Otherwise a
        process that publishes what it also consumes would fill its own hands first.
        """
        load = min(len(claimant.unsettled) / claimant.prefetch for claimant in claimants)
        now = time.monotonic()
        return now < self._desk.patience.setdefault(subscription, now + _PATIENCE_SECONDS * load)
