"""Facts on their way to the writer thread: bounded, and never waited for. On the event loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from ...errors import SignalBusError
from ...ledger import Batch
from .operations import Append

WAITING_FACTS = 200_000  # beyond that the newest are dropped


class Facts:
    """See the module. ``submit`` hands an operation to the writer thread."""

    def __init__(self, submit: Callable[[Append], None], counters: Counter[str]) -> None:
        self._submit = submit
        self._counters = counters
        self._waiting = 0

    def append(self, batches: Sequence[Batch]) -> None:
        """See `Broker.append`."""
        facts = sum(len(batch.rows) for batch in batches)
        if self._waiting + facts > WAITING_FACTS:
            self._drop(facts)
            return
        self._waiting += facts
        try:
            self._submit(Append(batches, facts, self._done))
        except SignalBusError:  # the writer has died, and said so
            self._done(facts, stored=False)

    def _done(self, facts: int, *, stored: bool) -> None:
        self._waiting -= facts
        if not stored:
            self._drop(facts)

    def _drop(self, facts: int) -> None:
        self._counters["facts_dropped"] += facts
