"""One transaction: a group of operations, then what is due, then claims for our consumers.

Begun, committed and rolled back by the writer. Nothing outside the database changes before `committed`, except what
`rolled_back` restores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...delivery import Ack, DeadLetter, RetryLater
from ...errors import ConfigError
from ..base import CONFIRMED, RETURNED, PublishOutcome, SubscriptionSpec
from . import store, topology
from .claims import Batch, Claim, Claimant
from .desk import Desk
from .operations import ALL_CONFIRMED, Operation, Publish, Settle
from .records import pack_history, seal
from .sessions import is_alive, remove
from .wake import remove_socket

_CLAIM_LIMIT = 1_000  # deliveries a subscription and transaction: bounds how long others wait for the lock
_PURGE_LIMIT = 1_000
_ROW_BYTES = 400  # what a changed row adds to the log, roughly: several share a page
# Left to consumers of other processes that have less to do: for each delivery in our hands, and at most.
_PATIENCE_SECONDS = (0.001, 0.01)


class Group:
    """See the module."""

    def __init__(self, connection: store.Connection, desk: Desk) -> None:
        self._connection = connection
        self._desk = desk
        self._seq = 0
        self._values: list[object] = []  # of signals to insert, flat
        self._queued: dict[int, list[int]] = {}  # subscription -> signals
        self._shared: dict[int, list[int]] = {}  # number of subscriptions -> signals
        self._acks: dict[int, list[Settle]] = {}  # subscription -> acks
        self._fed: set[int] = set()  # subscriptions with something newly ready
        self._emptied: set[int] = set()  # subscriptions of which we claimed all that was ready
        self._batches: list[Batch] = []
        self._buried: list[tuple[str, str]] = []  # (token, socket)
        self._undo: list[Callable[[], None]] = []
        self.written = 0  # bytes, roughly

    def run(self, operations: Iterable[Operation[Any]], *, claiming: bool = True) -> None:
        """Do everything but commit."""
        self._refresh()
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

    def committed(self) -> list[str]:
        """Take over what the transaction changed; return the sockets of those who should look."""
        desk = self._desk
        desk.next_seq = self._seq
        desk.unread.extend(self._batches)
        for token, socket in self._buried:
            try:
                remove(desk.files.sessions, token)
                remove_socket(socket)
            except OSError:
                desk.counters["leftover_files"] += 1  # harmless; the next opening tries again
        sockets = desk.topology.sockets
        others = {
            session
            for subscription in self._fed - self._emptied
            for session in desk.topology.others_serving(subscription, desk.session)
        }
        return [sockets[session] for session in others if session in sockets]

    def rolled_back(self) -> None:
        """Restore what was changed outside the database."""
        for undo in reversed(self._undo):
            undo()
        self._desk.forget()

    # Operations

    def publish(self, operation: Publish) -> None:
        """Route signals and collect them for insertion."""
        if self._desk.short_of_space:
            operation.refuse(self._desk.short_of_space)
            return
        route = self._desk.topology.routes.get
        values, queued, seq = self._values, self._queued, self._seq
        outcomes: list[PublishOutcome] | None = None
        for index, (signal_type, head, body, checksum) in enumerate(operation.records):
            subscriptions = route(signal_type)
            if subscriptions is None:
                subscriptions = self._desk.topology.route(signal_type)
            if not subscriptions:
                if outcomes is None:
                    outcomes = [CONFIRMED] * len(operation.records)
                outcomes[index] = RETURNED
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
        self._seq = seq
        self.written += operation.size + len(operation.records) * _ROW_BYTES
        if outcomes is not None:
            operation.result = outcomes
        elif len(operation.records) == 1:
            operation.result = ALL_CONFIRMED
        else:
            operation.result = [CONFIRMED] * len(operation.records)

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
            self._feed(claim.subscription)
        self._free([claim])

    def declare(self, wanted: SubscriptionSpec) -> None:
        """Create a subscription, or give it other patterns."""
        self._flush()
        desk = self._desk
        patterns = tuple(sorted(set(wanted.patterns)))
        entry = desk.topology.by_name.get(wanted.name)
        if entry is not None and entry.owner not in (None, desk.session) and not self._lives(entry.owner or 0):
            entry = desk.topology.by_name.get(wanted.name)
        if entry is None:
            store.insert_subscription(self._connection, wanted.name, patterns, None if wanted.durable else desk.session)
        else:
            self._check_redeclaration(wanted, entry)
            if entry.patterns == patterns:
                return
            if others := [o for o in desk.topology.others_serving(entry.id, desk.session) if self._lives(o)]:
                raise ConfigError(
                    f"subscription {wanted.name!r} is served by {len(others)} other session(s) with the patterns "
                    f"{', '.join(entry.patterns)}; stop them first, or choose another name"
                )
            store.update_patterns(self._connection, entry.id, patterns)
        if not wanted.durable:
            self._set(desk, "temporary", {**desk.temporary, wanted.name: patterns})
        self._reload()

    def delete(self, name: str) -> None:
        """Delete a subscription."""
        self._flush()
        entry = self._desk.topology.by_name.get(name)
        if entry is None:
            return
        store.delete_subscription(self._connection, entry.id)
        kept = {other: patterns for other, patterns in self._desk.temporary.items() if other != name}
        self._set(self._desk, "temporary", kept)
        self._desk.purging = True
        self._reload()

    def serve(self, claimant: Claimant) -> None:
        """Count a consumer in."""
        self._flush()
        desk = self._desk
        entry = desk.topology.by_name.get(claimant.name)
        if entry is None:
            raise ConfigError(f"subscription {claimant.name!r} does not exist; declare it first")
        if entry.owner not in (None, desk.session):
            raise ConfigError(f"subscription {claimant.name!r} is temporary and belongs to another session")
        store.count_consumer(self._connection, entry.id, desk.session, 1)
        self._set(claimant, "subscription", entry.id)
        self._set(desk, "claimants", [*desk.claimants, claimant])
        desk.promising.add(entry.id)
        desk.note_due(self._connection, entry.id)
        self._reload()

    def quit(self, claimant: Claimant) -> None:
        """Count a consumer out."""
        self._flush()
        if claimant not in self._desk.claimants:
            return
        if claimant.subscription:
            store.count_consumer(self._connection, claimant.subscription, self._desk.session, -1)
        self._set(self._desk, "claimants", [other for other in self._desk.claimants if other is not claimant])
        self._reload()

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
            self._free(held)
            self._feed(subscription)

    def bury(self, session: int) -> None:
        """End the session of a dead process."""
        self._flush()
        desk = self._desk
        if session == desk.session or session not in desk.topology.tokens:
            return
        self._buried.append((desk.topology.tokens[session], desk.topology.sockets[session]))
        for subscription in store.end_session(self._connection, session, crashed=True):
            self._feed(subscription)
        desk.purging = True
        desk.counters["sessions_buried"] += 1
        self._reload()

    def leave(self) -> None:
        """End our own session, in good order."""
        self._flush()
        for subscription in store.end_session(self._connection, self._desk.session, crashed=False):
            self._fed.add(subscription)
        self._set(self._desk, "claimants", [])
        store.touch_topology(self._connection)

    # Steps

    def _refresh(self) -> None:
        desk = self._desk
        version = store.data_version(self._connection)
        if version != desk.version:
            counter = store.topology_counter(self._connection)
            desk.next_seq = store.last_seq(self._connection) + 1
            if counter != desk.topology.counter:
                known = desk.topology.tokens
                desk.topology = topology.load(self._connection, counter)
                desk.purging = True
                if desk.session and desk.session not in desk.topology.tokens:
                    self.enter()
                self._bind()
                # What a dead process left must not count as an audience; those known before are swept anyway.
                for session in [session for session in desk.topology.tokens if session not in known]:
                    if session != desk.session:
                        self._lives(session)
            for subscription in desk.serving():
                desk.promising.add(subscription)
                desk.note_due(self._connection, subscription)
            desk.version = version
        self._seq = desk.next_seq

    def enter(self) -> None:
        """Register our session; again, if others took us for dead: all that we held is lost then."""
        desk = self._desk
        info = desk.info
        if desk.session:
            desk.counters["sessions_fenced"] += 1
        started = info.started.isoformat()
        row = (desk.token, desk.socket, info.id, info.name, info.host, info.pid, info.version, started)
        self._set(desk, "session", store.insert_session(self._connection, row))
        for claimant in desk.claimants:
            self._set(claimant, "unsettled", {})
            self._set(claimant, "subscription", 0)
        desk.unread.clear()
        for name, patterns in desk.temporary.items():
            if name not in desk.topology.by_name:
                store.insert_subscription(self._connection, name, patterns, desk.session)
        self._reload()

    def _reload(self) -> None:
        """Take over a change of the topology that this transaction has made."""
        store.touch_topology(self._connection)
        desk = self._desk
        desk.topology = topology.load(self._connection, store.topology_counter(self._connection))
        self._bind()

    def _bind(self) -> None:
        """Let consumers follow their subscription if it was deleted and declared again."""
        desk = self._desk
        changed = False
        for claimant in desk.claimants:
            entry = desk.topology.by_name.get(claimant.name)
            number = entry.id if entry is not None and entry.owner in (None, desk.session) else 0
            if number == claimant.subscription:
                continue
            self._set(claimant, "subscription", number)
            self._set(claimant, "unsettled", {})  # what it held went with the old one
            if number:
                store.count_consumer(self._connection, number, desk.session, 1)
                desk.promising.add(number)
                changed = True
        if changed:
            self._reload()

    def _flush(self) -> None:
        if self._values:
            store.insert_signals(self._connection, self._values)
            self._values = []
            for fanout, signals in self._shared.items():
                store.insert_fanout(self._connection, fanout, store.listed(signals))
            self._shared = {}
            for subscription, signals in self._queued.items():
                store.insert_ready(self._connection, subscription, store.listed(signals))
                self._feed(subscription)
            self._queued = {}
        if self._acks:
            for subscription, acks in self._acks.items():
                self._ack(subscription, acks)
            self._acks = {}

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
        self._free([operation.claim for operation in acks])

    def _owned(self, subscription: int, claims: list[Claim]) -> list[Claim]:
        """Return those of ``claims`` that the database says are ours."""
        session = self._desk.session
        signals = [claim.signal for claim in claims]
        if store.owned(self._connection, subscription, session, store.listed(signals)) == len(claims):
            return claims
        return [c for c in claims if store.owned(self._connection, subscription, session, store.listed([c.signal]))]

    def _forget_signals(self, claims: list[Claim]) -> None:
        self.written += len(claims) * _ROW_BYTES
        for shared in (False, True):
            if signals := [claim.signal for claim in claims if claim.shared is shared]:
                store.forget_signals(self._connection, store.listed(signals), shared=shared)

    def _retry(self, claim: Claim, settlement: RetryLater) -> None:
        history = pack_history(settlement.history)
        delay = settlement.delay.total_seconds()
        if delay <= 0:
            store.retry_now(self._connection, claim.subscription, claim.signal, history)
            self._feed(claim.subscription)
            return
        clock = self._desk.clock
        due = (clock.boottime() + delay, clock.wall() + delay, delay)
        store.retry_later(self._connection, claim.subscription, claim.signal, history, due)
        if any(claimant.subscription == claim.subscription for claimant in self._desk.claimants):
            self._desk.note_due(self._connection, claim.subscription)

    def _free(self, claims: list[Claim]) -> None:
        for claim in claims:
            if claim.claimant.unsettled.get(claim.signal) is claim:
                del claim.claimant.unsettled[claim.signal]
        self._undo.append(lambda: _restore(claims))

    def _set(self, holder: Desk | Claimant, name: str, value: object) -> None:
        """Change what is remembered outside the database, until a rollback."""
        before = getattr(holder, name)
        self._undo.append(lambda: setattr(holder, name, before))
        setattr(holder, name, value)

    def _feed(self, subscription: int) -> None:
        self._fed.add(subscription)
        self._desk.promising.add(subscription)

    def _lives(self, session: int) -> bool:
        """Tell whether a session's process lives, and bury it if not."""
        token = self._desk.topology.tokens.get(session)
        if token is not None and is_alive(self._desk.files.sessions, token):
            return True
        self.bury(session)
        return False

    def _check_redeclaration(self, wanted: SubscriptionSpec, entry: topology.Entry) -> None:
        if entry.owner is None and not wanted.durable:
            raise ConfigError(
                f"subscription {wanted.name!r} exists and is durable; delete it first, or choose another name"
            )
        if entry.owner is not None and wanted.durable:
            raise ConfigError(f"subscription {wanted.name!r} exists and is temporary; choose another name")
        if entry.owner not in (None, self._desk.session):
            raise ConfigError(
                f"subscription {wanted.name!r} is temporary and belongs to another session; choose another name"
            )

    def _wake_delayed(self) -> None:
        desk = self._desk
        if not desk.due:
            return
        now = desk.clock.boottime()
        for subscription in [subscription for subscription, due in desk.due.items() if due <= now]:
            store.wake_delayed(self._connection, subscription, now)
            self._feed(subscription)
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
                self._emptied.add(subscription)
        if count:
            desk.patience.pop(subscription, None)
            desk.batch += 1
            store.claim(self._connection, subscription, last, desk.session, desk.batch)
            self._batches.append(Batch(subscription, desk.session, desk.batch, tuple(claimants)))
            self.written += count * _ROW_BYTES

    def _others_first(self, subscription: int, claimants: list[Claimant]) -> bool:
        """Tell whether to wait a moment, as ours are busy and those of other processes may be less so.

        The busier wait longer, so the work finds the least busy without anybody asking who that is. Otherwise a
        process that publishes what it also consumes would fill its own hands first.
        """
        each, most = _PATIENCE_SECONDS
        wait = min(each * min(len(claimant.unsettled) for claimant in claimants), most)
        now = time.monotonic()
        return now < self._desk.patience.setdefault(subscription, now + wait)


def _restore(claims: list[Claim]) -> None:
    for claim in claims:
        claim.claimant.unsettled[claim.signal] = claim
