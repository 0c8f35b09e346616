"""What others send to this session: one queue, sorted by kind."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from .lane import Received
from .notes import Malformed, Note, kind_of

log = logging.getLogger(__name__)

Take = Callable[[Received], None]


class Inbox:
    """Hands messages to those who registered for their kind. Outlives its queue: each incarnation has another."""

    def __init__(self, counters: Counter[str]) -> None:
        self.queue = ""
        self._counters = counters
        self._takers: dict[object, Take] = {}

    def on(self, kind: Note, take: Take) -> None:
        """Call ``take`` for messages of a kind. It may raise `Malformed`, and must not block."""
        self._takers[kind.value] = take

    def take(self, message: Received) -> None:
        """Take a message, from anybody."""
        kind = kind_of(message)
        taker = self._takers.get(kind) if isinstance(kind, str) else None
        try:
            if taker is None:
                raise Malformed(f"a note of the kind {kind!a}")
            taker(message)
        except Malformed as error:
            self._counters["notes_refused"] += 1
            log.warning("a message to this session is refused: %s", error)
