"""What one transaction changes outside the database, kept until it is committed or rolled back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ledger import Batch as Facts
from . import store
from .claims import Batch, Claim, Claimant
from .desk import Desk
from .sessions import remove
from .sockets import remove_socket


class Changes:
    """Shared by the parts of a group. Nothing outside the database changes before `committed`, except what
    `rolled_back` restores."""

    def __init__(self, connection: store.Connection, desk: Desk) -> None:
        self.connection = connection
        self.desk = desk
        self.next_seq = 0
        self.written = 0  # bytes, roughly
        self.fed: set[int] = set()  # subscriptions with something newly ready
        self.emptied: set[int] = set()  # subscriptions of which we claimed all that was ready
        self.batches: list[Batch] = []
        self.buried: list[tuple[str, tuple[str, ...]]] = []  # (token, sockets)
        self.downs: list[Facts] = []  # of the sessions that were buried
        self.moved = False  # a session came or ended: who watches should look
        self._undo: list[Callable[[], None]] = []

    def feed(self, subscription: int) -> None:
        """Note that there is something newly ready for a subscription."""
        self.fed.add(subscription)
        self.desk.promising.add(subscription)

    def free(self, claims: Sequence[Claim]) -> None:
        """Let consumers take something else for what is settled."""
        for claim in claims:
            if claim.claimant.unsettled.get(claim.signal) is claim:
                del claim.claimant.unsettled[claim.signal]
        self._undo.append(lambda: _restore(claims))

    def set(self, holder: Desk | Claimant, name: str, value: object) -> None:
        """Change what is remembered outside the database, until a rollback."""
        before = getattr(holder, name)
        self._undo.append(lambda: setattr(holder, name, before))
        setattr(holder, name, value)

    def committed(self) -> list[str]:
        """Take over what the transaction changed; return the sockets of those who should look."""
        desk = self.desk
        desk.next_seq = self.next_seq
        desk.unread.extend(self.batches)
        for token, paths in self.buried:
            try:
                remove(desk.files.sessions, token)
                for path in paths:
                    remove_socket(path)
            except OSError:
                desk.counters["leftover_files"] += 1  # harmless; the next opening tries again
        sockets = desk.topology.sockets
        others = {
            session
            for subscription in self.fed - self.emptied
            for session in desk.topology.others_serving(subscription, desk.session)
        }
        if self.moved:
            others.update(session for session in desk.topology.watching if session != desk.session)
        return [sockets[session] for session in others if session in sockets]

    def rolled_back(self) -> None:
        """Restore what was changed outside the database."""
        for undo in reversed(self._undo):
            undo()
        self.desk.forget()


def _restore(claims: Sequence[Claim]) -> None:
    for claim in claims:
        claim.claimant.unsettled[claim.signal] = claim
