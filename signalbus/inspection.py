"""What there is to look at in one bus: for the API, the page and the command line, on either broker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .bus import Bus
from .deadletters import DeadLetters
from .trace.reader import TraceReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A bus, and where its traces and dead letters are kept. Whoever makes it opens and closes them.

    ``troubles``: what keeps this from doing its work now, one sentence each (the store is full, the broker is away);
    none if all is well. Blocks never.
    """

    bus: Bus
    traces: TraceReader
    letters: DeadLetters
    troubles: Callable[[], Sequence[str]]
