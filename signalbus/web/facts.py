"""Facts as they go to another reader: in batches, in their order, and back. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from ..ledger import Batch, Fact, Origin, decode, encode
from ..ledger.facts import SESSION_STEPS, Row, to_row


def batches_of(facts: Iterable[Fact]) -> list[dict[str, object]]:
    """Return facts as plain data. What follows on each other, told by one recorder, makes a batch."""
    return [orjson.loads(encode(batch)) for batch in _runs(facts)]


def facts_of(batches: Sequence[object]) -> list[Fact]:
    """Return facts that came from elsewhere. Raises `LedgerError`."""
    return [fact for batch in batches for fact in decode(orjson.dumps(batch)).facts()]


def about(signal: str, facts: Iterable[Fact]) -> list[Fact]:
    """Return the facts of one signal out of those of a trace, with those of sessions."""
    return [fact for fact in facts if fact.step.kind in SESSION_STEPS or getattr(fact.step, "signal", None) == signal]


def _runs(facts: Iterable[Fact]) -> Iterable[Batch]:
    origin: Origin | None = None
    first, rows = 0, list[Row]()
    for fact in facts:
        if origin is not None and (fact.origin != origin or fact.sequence != first + len(rows)):
            yield Batch(origin=origin, first=first, rows=rows)
            rows = []
        if not rows:
            origin, first = fact.origin, fact.sequence
        rows.append(to_row(fact.at, fact.step))
    if origin is not None:
        yield Batch(origin=origin, first=first, rows=rows)
