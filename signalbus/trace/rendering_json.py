"""A trace as JSON, for programs.

``schema_version`` grows when a member changes its meaning or goes away; new members may come at any time. Times are RFC
3339 in UTC, durations seconds, states the words of `signalbus.trace.model`. What was not recorded is null, and
``inferred`` says what must have been all the same.

::

    {"schema_version": 1, "complete": true, "left_out": 0,
     "skews": [{"early": host, "late": host, "seconds": n}],
     "signal": {
       "id", "type", "source", "subject", "time", "correlationid", "causationid", "traceparent",
       "published_at", "published_by": {"session", "name", "host", "pid"}, "inferred": ["publication"],
       "data": what was captured of the payload, "data_cut": whether something was left out of it,
       "request": false, "unroutable": false, "summary": "2 acked, 1 outstanding", "states": ["acked", ...],
       "cause": the subscription whose handler published it, where that is certain,
       "deliveries": [{
         "subscription", "state", "since", "due", "unrecorded_losses", "replayed_at": [times],
         "unrecorded_attempts": [{"first", "last"}],
         "attempts": [{"attempt", "replay", "crashes", "end", "began_at", "ended_at", "queued_seconds",
                       "work_seconds", "error", "delay_seconds", "by": {...}, "inferred": ["start", "end"]}]}],
       "reply": {"outcome", "error", "work_seconds", "waited_seconds", "responder", "inferred"} or null,
       "children": [signals]}}
"""

from __future__ import annotations

import json
from typing import cast

import pydantic_core

from ..ledger import Origin
from ..moments import rfc3339
from .listing import Listed
from .model import Attempt, Delivery, Reply, SignalTrace, Trace
from .rendering import moment

SCHEMA_VERSION = 1


def render_json(trace: Trace, *, indent: int | None = None) -> str:
    """Return a trace as ASCII JSON, so that no terminal obeys what is in it."""
    return json.dumps(trace_fields(trace), indent=indent, allow_nan=False)


def trace_fields(trace: Trace) -> dict[str, object]:
    """Return the members of the JSON object."""
    return {
        "schema_version": SCHEMA_VERSION,
        "complete": trace.complete,
        "left_out": trace.left_out,
        "skews": [{"early": skew.early, "late": skew.late, "seconds": skew.seconds} for skew in trace.skews],
        "signal": signal_fields(trace.root),
    }


def signal_fields(signal: SignalTrace) -> dict[str, object]:
    """Return the members of one signal; also for lists, where it has no children."""
    return {
        "id": signal.id,
        "type": signal.type,
        "source": signal.source,
        "subject": signal.subject,
        "time": signal.time,
        "correlationid": signal.correlationid,
        "causationid": signal.causationid,
        "traceparent": signal.traceparent,
        "published_at": _time(signal.at),
        "published_by": _who(signal.published.origin if signal.published else None),
        "inferred": [] if signal.published else ["publication"],
        "data": _data(signal.data),
        "data_cut": signal.cut,
        "request": signal.request,
        "unroutable": signal.unroutable,
        "summary": signal.summary,
        "states": [state.value for state in signal.states],
        "cause": signal.cause,
        "deliveries": [_delivery(delivery) for delivery in signal.deliveries],
        "reply": _reply(signal.reply) if signal.reply else None,
        "children": [signal_fields(child) for child in signal.children],
    }


def listed_fields(listed: Listed) -> dict[str, object]:
    """Return the members of a signal in a list."""
    return {"at": _time(listed.at), "failed": listed.failed, **signal_fields(listed.signal)}


def _delivery(delivery: Delivery) -> dict[str, object]:
    return {
        "subscription": delivery.subscription,
        "state": delivery.state.value,
        "since": _time(delivery.since),
        "due": _time(delivery.due),
        "unrecorded_losses": delivery.crashes,
        "unrecorded_attempts": [{"first": gap.first, "last": gap.last} for gap in delivery.gaps],
        "replayed_at": [_time(fact.at) for fact in delivery.replays],
        "attempts": [_attempt(attempt) for attempt in delivery.attempts],
    }


def _attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "attempt": attempt.number,
        "replay": attempt.replay,
        "crashes": attempt.crashes,
        "end": attempt.end.value,
        "began_at": _time(attempt.began.at if attempt.began else None),
        "ended_at": _time(attempt.ended.at if attempt.ended else None),
        "queued_seconds": attempt.queued,
        "work_seconds": attempt.work,
        "error": attempt.error,
        "delay_seconds": attempt.delay,
        "by": _who(attempt.origin),
        "inferred": list(attempt.inferred),
    }


def _reply(reply: Reply) -> dict[str, object]:
    missing = [name for name, fact in (("answer", reply.answered), ("receipt", reply.received)) if fact is None]
    return {
        "outcome": reply.outcome,
        "error": reply.error,
        "work_seconds": reply.work,
        "waited_seconds": reply.waited,
        "responder": reply.responder,
        "inferred": missing if reply.outcome == "reply" else [],
    }


def _who(origin: Origin | None) -> dict[str, object] | None:
    if origin is None:
        return None
    return {"session": origin.session, "name": origin.name, "host": origin.host, "pid": origin.pid}


def _time(at: float | None) -> str | None:
    time = moment(at)
    return None if time is None else rfc3339(time)


def _data(data: str | None) -> object:
    """Return a captured payload as it was; large integers stay integers."""
    if data is None:
        return None
    try:
        return cast("object", pydantic_core.from_json(data, allow_inf_nan=False))
    except ValueError:
        return data
