"""Subscriptions, consumers, responders and sessions: the part of a transaction that changes who gets what."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import ConfigError
from ...ledger import Batch, Origin
from ...sessions import DownReason
from ..base import SubscriptionSpec
from . import census, store, topology
from .changes import Changes
from .claims import Claimant
from .desk import Duty
from .sessions import is_alive


class Registry:
    """See the module. Whatever raises `ConfigError` has changed nothing before."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._connection = changes.connection
        self._desk = changes.desk

    # Subscriptions and consumers

    def declare(self, wanted: SubscriptionSpec) -> None:
        """Create a subscription, or give it other patterns."""
        desk = self._desk
        patterns = tuple(sorted(set(wanted.patterns)))
        entry = desk.topology.by_name.get(wanted.name)
        if entry is not None and entry.owner not in (None, desk.session) and not self._lives(entry.owner or 0):
            entry = desk.topology.by_name.get(wanted.name)
        if entry is None:
            owner = None if wanted.durable else desk.session
            store.insert_subscription(self._connection, wanted.name, patterns, owner)
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
            self._changes.set(desk, "temporary", {**desk.temporary, wanted.name: patterns})
        self._reload()

    def delete(self, name: str) -> None:
        """Delete a subscription."""
        desk = self._desk
        entry = desk.topology.by_name.get(name)
        if entry is None:
            return
        store.delete_subscription(self._connection, entry.id)
        kept = {other: patterns for other, patterns in desk.temporary.items() if other != name}
        self._changes.set(desk, "temporary", kept)
        desk.purging = True
        self._reload()

    def serve(self, claimant: Claimant) -> None:
        """Count a consumer in."""
        desk = self._desk
        entry = desk.topology.by_name.get(claimant.name)
        if entry is None:
            raise ConfigError(f"subscription {claimant.name!r} does not exist; declare it first")
        if entry.owner not in (None, desk.session):
            raise ConfigError(f"subscription {claimant.name!r} is temporary and belongs to another session")
        store.count_consumer(self._connection, entry.id, desk.session, 1)
        self._changes.set(claimant, "subscription", entry.id)
        self._changes.set(desk, "claimants", [*desk.claimants, claimant])
        desk.promising.add(entry.id)
        desk.note_due(self._connection, entry.id)
        self._reload()

    def quit(self, claimant: Claimant) -> None:
        """Count a consumer out."""
        desk = self._desk
        if claimant not in desk.claimants:
            return
        if claimant.subscription:
            store.count_consumer(self._connection, claimant.subscription, desk.session, -1)
        self._changes.set(desk, "claimants", [other for other in desk.claimants if other is not claimant])
        self._reload()

    # Responders

    def respond(self, duty: Duty) -> None:
        """Count a responder in."""
        desk = self._desk
        census.count_responder(self._connection, duty.type, desk.session, 1)
        self._changes.set(desk, "duties", [*desk.duties, duty])
        self._reload()

    def dismiss(self, duty: Duty) -> None:
        """Count a responder out."""
        desk = self._desk
        if duty not in desk.duties:
            return
        census.count_responder(self._connection, duty.type, desk.session, -1)
        self._changes.set(desk, "duties", [other for other in desk.duties if other is not duty])
        self._reload()

    # Sessions

    def watch(self, name: str) -> bool:
        """Watch a session; no if there is none of that name. It ends under the write lock, so none is missed."""
        desk = self._desk
        session = desk.topology.names.get(name)
        if session is None or (session != desk.session and not self._lives(session)):
            return False
        self._attend()
        self._changes.set(desk, "watched", desk.watched | {name})
        return True

    def watch_all(self) -> int:
        """Watch all sessions; return the newest departure, behind which those begin that are to be reported."""
        self._attend()
        self._changes.set(self._desk, "watches_all", True)
        return census.last_departure(self._connection)

    def enter(self) -> None:
        """Register our session; again, if others took us for dead: all that we held is lost then."""
        desk = self._desk
        if desk.session:
            desk.counters["sessions_fenced"] += 1
            self._changes.set(desk, "info", desk.info.next())
        assert desk.lock is not None
        desk.lock.restore()
        info = desk.info
        places = (desk.lock.token, desk.socket, desk.address, int(desk.attentive))
        row = (*places, info.id, info.name, info.host, info.pid, info.version, info.started.isoformat())
        self._changes.set(desk, "session", census.insert_session(self._connection, (*row, info.incarnation)))
        self._changes.moved = True
        for claimant in desk.claimants:
            self._changes.set(claimant, "unsettled", {})
            self._changes.set(claimant, "subscription", 0)
        self._changes.set(desk, "unread", [])
        for name, patterns in desk.temporary.items():
            if name not in desk.topology.by_name:
                store.insert_subscription(self._connection, name, patterns, desk.session)
        for duty in desk.duties:
            census.count_responder(self._connection, duty.type, desk.session, 1)
        self._reload()

    def bury(self, sessions: Iterable[int]) -> None:
        """End the sessions of dead processes; asked under the write lock, as the word of a sweep may be old."""
        dead = [session for session in sessions if self._is_dead(session)]
        for session in dead:
            self._bury(session)
        if dead:
            self._desk.purging = True
            self._changes.moved = True
            self._reload()

    def leave(self) -> None:
        """End our own session, in good order."""
        desk = self._desk
        reason, now = desk.reason.value, desk.clock.wall()
        for subscription in census.end_session(self._connection, desk.session, reason, now, crashed=False):
            self._changes.fed.add(subscription)
        self._changes.set(desk, "claimants", [])
        self._changes.moved = True

    # What others changed

    def refresh(self) -> None:
        """Take over what other processes have changed since our last transaction."""
        desk = self._desk
        version = store.data_version(self._connection)
        if version == desk.version:
            return
        desk.next_seq = store.last_seq(self._connection) + 1
        counter = store.topology_counter(self._connection)
        if counter != desk.topology.counter:
            known = desk.topology.tokens
            desk.topology = topology.load(self._connection, counter)
            desk.purging = True
            if desk.session and desk.session not in desk.topology.tokens:
                self.enter()
            self._bind()
            # What a dead process left must not count as an audience; those known before are swept anyway.
            self.bury([session for session in desk.topology.tokens if session not in known])
        for subscription in desk.serving():
            desk.promising.add(subscription)
            desk.note_due(self._connection, subscription)
        desk.version = version

    def _reload(self) -> None:
        """Take over a change of the topology that this transaction has made."""
        store.touch_topology(self._connection)
        self._desk.topology = topology.load(self._connection, store.topology_counter(self._connection))
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
            self._changes.set(claimant, "subscription", number)
            self._changes.set(claimant, "unsettled", {})  # what it held went with the old one
            if number:
                store.count_consumer(self._connection, number, desk.session, 1)
                desk.promising.add(number)
                changed = True
        if changed:
            self._reload()

    def _lives(self, session: int) -> bool:
        """Tell whether a session's process lives, and bury it if not."""
        self.bury([session])
        return session in self._desk.topology.tokens

    def _is_dead(self, session: int) -> bool:
        token = self._desk.topology.tokens.get(session)
        return token is not None and session != self._desk.session and not is_alive(self._desk.files.sessions, token)

    def _bury(self, session: int) -> None:
        desk, known = self._desk, self._desk.topology
        self._changes.buried.append((known.tokens[session], (known.sockets[session], known.addresses[session])))
        reason, now = DownReason.CONNECTION_LOST.value, desk.clock.wall()
        for subscription in census.end_session(self._connection, session, reason, now, crashed=True):
            self._changes.feed(subscription)
        desk.counters["sessions_buried"] += 1
        name = next(name for name, number in known.names.items() if number == session)
        row = ("session_down", now, name, reason, "", None)
        # The same, whoever of several finds it.
        self._changes.downs.append(Batch(origin=Origin(recorder=f"end of {name}", session=name), first=1, rows=[row]))

    def _attend(self) -> None:
        """Get hints about the end of sessions from now on."""
        desk = self._desk
        if not desk.watches:
            self._changes.set(desk, "departure", census.last_departure(self._connection))
        if not desk.attentive:
            self._changes.set(desk, "attentive", True)
            census.set_watching(self._connection, desk.session)
            self._reload()

    def _check_redeclaration(self, wanted: SubscriptionSpec, entry: topology.Entry) -> None:
        name = wanted.name
        if entry.owner is None and not wanted.durable:
            raise ConfigError(f"subscription {name!r} exists and is durable; delete it first, or choose another name")
        if entry.owner is not None and wanted.durable:
            raise ConfigError(f"subscription {name!r} exists and is temporary; choose another name")
        if entry.owner not in (None, self._desk.session):
            raise ConfigError(f"subscription {name!r} is temporary and belongs to another session; choose another name")
