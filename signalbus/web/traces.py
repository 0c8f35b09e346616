"""Operations on traces, on their store, and on what signals of a type would do."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InvalidSignal
from ..explanation import explain, match_fields
from ..patterns import check_type
from ..trace.listing import Candidate, Listed
from ..trace.model import SignalTrace
from ..trace.reader import TraceReader
from ..trace.rendering_json import SCHEMA_VERSION, listed_fields, trace_fields
from . import trace_shapes
from .facts import about, batches_of
from .filters import Prefix, Signals, Text
from .operations import Context, Input, Nothing, Operation, read
from .problems import Problem, Refused, not_found
from .values import CANDIDATES

Members = dict[str, object]


class ByPrefix(Input):
    """Whose id begins like this: six characters or more."""

    prefix: Prefix


class OneSignal(Input):
    """A whole id."""

    id: Text


class OneType(Input):
    """A type, like order.placed."""

    type: Text


async def _list(context: Context, asked: Signals) -> Members:
    traces = context.inspection.traces
    page = await traces.page(asked.query())
    behind = traces.behind
    return {
        "schema_version": SCHEMA_VERSION,
        "signals": [] if asked.facts else [listed_fields(listed) for listed in page.signals],
        "facts": [await _listed_facts(traces, listed) for listed in page.signals] if asked.facts else None,
        "next": page.next,
        "complete": page.complete,
        "behind": behind,
    }


async def _listed_facts(traces: TraceReader, listed: Listed) -> Members:
    signal = listed.signal.id
    facts = about(signal, await traces.facts(signal))
    return {"id": signal, "at": listed.at, "failed": listed.failed, "batches": batches_of(facts)}


async def _find(context: Context, asked: ByPrefix) -> Sequence[Candidate]:
    return await context.inspection.traces.find(asked.prefix)


async def _show(context: Context, asked: OneSignal) -> Members:
    trace = await context.inspection.traces.trace(asked.id)
    if trace.root == SignalTrace(id=asked.id):
        raise not_found(f"no signal is known with the id {asked.id[:80]!a}", "find it: /api/v1/traces/find?prefix=")
    return trace_fields(trace)


async def _facts(context: Context, asked: OneSignal) -> Members:
    traces = context.inspection.traces
    facts = await traces.facts(asked.id)
    return {"schema_version": SCHEMA_VERSION, "behind": traces.behind, "batches": batches_of(facts)}


async def _store(context: Context, asked: Nothing) -> Members:
    stats = await context.inspection.traces.stats()
    return {
        "facts": stats.facts,
        "bytes": stats.bytes,
        "dropped": stats.dropped,
        "oldest": stats.oldest,
        "behind": context.inspection.traces.behind,
    }


async def _explain(context: Context, asked: OneType) -> Members:
    try:
        check_type(asked.type)
    except InvalidSignal as error:
        raise Refused(Problem(status=422, error=str(error), advice="write a type like order.placed")) from error
    matches = [explain(asked.type, queue) for queue in await context.looks.queues()]
    return {
        "type": asked.type,
        "routable": any(match.patterns for match in matches),
        "subscriptions": [match_fields(match) for match in matches],
    }


OPERATIONS: tuple[Operation, ...] = (
    read("/traces", Signals, trace_shapes.SIGNALS, _list, "List signals, newest first."),
    read("/traces/find", ByPrefix, CANDIDATES, _find, "Find up to 20 signals by how their ids begin."),
    read("/traces/{id}", OneSignal, trace_shapes.TRACE, _show, "Show a signal with all that it caused."),
    read("/traces/{id}/facts", OneSignal, trace_shapes.FACTS, _facts, "Return what a trace is made of."),
    read("/store", Nothing, trace_shapes.STORE, _store, "Say how much of the ledger is stored."),
    read("/explain", OneType, trace_shapes.EXPLAINED, _explain, "Say where signals of a type would go, and why."),
)
