"""Who gets what: subscriptions, consumers and sessions as read from the database, with a cache of routes."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field

from ...errors import ConfigError, StorageError
from ...patterns import Pattern, parse
from ..base import RETURNED, PublishOutcome, PublishResult
from . import census, store

_ROUTES_KEPT = 10_000  # types seen; programs have hundreds, but a type may be made up of an id


@dataclass(frozen=True, slots=True)
class Entry:
    """A subscription as stored. ``owner`` is the session it vanishes with, None if it is durable."""

    id: int
    name: str
    patterns: tuple[str, ...]
    owner: int | None
    parsed: tuple[Pattern, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a type goes: the subscriptions, and what to answer who publishes it."""

    subscriptions: tuple[int, ...]
    outcome: PublishOutcome


@dataclass(slots=True)
class Topology:
    """One state of the topology; ``counter`` names it."""

    counter: int = 0
    by_name: dict[str, Entry] = field(default_factory=dict[str, Entry])
    servers: dict[int, dict[int, int]] = field(
        default_factory=dict[int, dict[int, int]]
    )  # subscription -> session -> consumers
    tokens: dict[int, str] = field(default_factory=dict[int, str])  # session -> token
    sockets: dict[int, str] = field(default_factory=dict[int, str])  # session -> socket
    addresses: dict[int, str] = field(default_factory=dict[int, str])  # session -> socket for requests
    names: dict[str, int] = field(default_factory=dict[str, int])  # what others call a session -> session
    watching: list[int] = field(default_factory=list[int])  # sessions that want a hint when others come or end
    routes: dict[str, Route] = field(default_factory=dict[str, Route])

    def route(self, signal_type: str) -> Route:
        """Return where a type goes."""
        found = self.routes.get(signal_type)
        if found is None:
            if len(self.routes) >= _ROUTES_KEPT:
                self.routes.clear()
            entries = [
                entry
                for entry in self.by_name.values()
                if any(pattern.matches(signal_type) for pattern in entry.parsed)
            ]
            names = tuple(sorted(entry.name for entry in entries))
            outcome = PublishOutcome(PublishResult.CONFIRMED, subscriptions=names) if entries else RETURNED
            found = self.routes[signal_type] = Route(tuple(entry.id for entry in entries), outcome)
        return found

    def consumers_of(self, subscription: int) -> int:
        """Return how many consumers a subscription has, in all processes."""
        return sum(self.servers.get(subscription, {}).values())

    def others_serving(self, subscription: int, session: int) -> list[int]:
        """Return the other sessions that serve a subscription."""
        return [other for other in self.servers.get(subscription, {}) if other != session]


def load(connection: store.Connection, counter: int) -> Topology:
    """Read the topology. Raises `StorageError` for one that makes no sense."""
    topology = Topology(counter)
    for number, name, patterns, owner in store.subscriptions(connection):
        try:
            texts, parsed = _patterns(patterns)
        except (ValueError, TypeError, ConfigError) as error:
            raise StorageError(f"the patterns of subscription {name!r} in the database are damaged: {error}") from error
        topology.by_name[name] = Entry(number, name, texts, owner, parsed)
    for subscription, session, count in store.consumers(connection):
        topology.servers.setdefault(subscription, {})[session] = count
    for session, token, socket, address, name, watching in census.sessions(connection):
        topology.tokens[session], topology.names[name] = token, session
        topology.sockets[session], topology.addresses[session] = socket, address
        if watching:
            topology.watching.append(session)
    return topology


@functools.lru_cache(maxsize=4096)
def _patterns(stored: str) -> tuple[tuple[str, ...], tuple[Pattern, ...]]:
    """Return stored patterns as texts and parsed: read anew whenever anybody comes or goes, they seldom change."""
    texts = tuple(json.loads(stored))
    return texts, tuple(parse(text) for text in texts)
