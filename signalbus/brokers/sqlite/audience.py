"""Which subscriptions a type goes to at present; nothing is stored or claimed for that."""

from __future__ import annotations

from . import store, topology
from .desk import Desk
from .sessions import is_alive


class Audience:
    """On the writer thread. Keeps the topology it read for as long as that does not change."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._topology = topology.Topology(counter=-1)

    def names(self, connection: store.Connection, signal_type: str) -> list[str]:
        """Return the names of the subscriptions that match a type, without those of sessions that are dead."""
        counter = store.topology_counter(connection)
        if counter != self._topology.counter:
            self._topology = topology.load(connection, counter)
        matching = set(self._topology.route(signal_type).subscriptions)
        entries = [entry for entry in self._topology.by_name.values() if entry.id in matching]
        return sorted(entry.name for entry in entries if entry.owner is None or self._lives(entry.owner))

    def _lives(self, session: int) -> bool:
        if session == self._desk.session:
            return True
        token = self._topology.tokens.get(session)
        return token is not None and is_alive(self._desk.files.sessions, token)
