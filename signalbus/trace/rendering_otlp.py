"""A trace as OTLP/JSON, for people who have an OpenTelemetry collector: the body of a POST to ``/v1/traces``.

Sources: opentelemetry-proto ``docs/specification.md``, "JSON Protobuf Encoding" (ids in hex, 64-bit integers as
strings, enums as numbers), and the semantic conventions for messaging spans. Exporting twice gives the same ids.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence

from ..ledger import Origin
from .model import Trace
from .spans import SpanKind, TraceSpan, spans

_KINDS = {SpanKind.REQUEST: 3, SpanKind.RESPOND: 2, SpanKind.PUBLISH: 4, SpanKind.PROCESS: 5}
_OPERATIONS = {
    SpanKind.PUBLISH: ("publish", "send"),
    SpanKind.PROCESS: ("process", "process"),
    SpanKind.REQUEST: ("request", "send"),
    SpanKind.RESPOND: ("respond", "process"),
}
_ERROR = 2  # STATUS_CODE_ERROR
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16


def render_otlp(trace: Trace) -> str:
    """Return the JSON. A trace that began elsewhere goes on as that trace, if its ``traceparent`` is known."""
    return json.dumps(otlp_fields(trace), allow_nan=False)


def otlp_fields(trace: Trace) -> dict[str, object]:
    """Return an ExportTraceServiceRequest."""
    outer_trace, outer_span = _context(trace)
    grouped: dict[Origin | None, list[dict[str, object]]] = {}
    for span in spans(trace):
        grouped.setdefault(span.origin, []).append(_span(span, outer_trace, outer_span))
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes(_resource(origin))},
                "scopeSpans": [{"scope": {"name": "signalbus.trace"}, "spans": group}],
            }
            for origin, group in grouped.items()
        ]
    }


def _context(trace: Trace) -> tuple[str, str]:
    """Return the trace that this one belongs to, and the span that caused it, if that is known."""
    match = _TRACEPARENT.fullmatch(trace.root.traceparent or "")
    if match and match[1] != _NO_TRACE and match[2] != _NO_SPAN:
        return match[1], match[2]
    return _digest(trace.root.id, 16), ""


def _digest(key: str, size: int) -> str:
    return hashlib.blake2s(key.encode("utf-8", "replace"), digest_size=size).hexdigest()


def _span(span: TraceSpan, trace_id: str, outer_span: str) -> dict[str, object]:
    found: dict[str, object] = {
        "traceId": trace_id,
        "spanId": _digest(span.key, 8),
        "name": f"{_OPERATIONS[span.kind][0]} {span.signal.type}",
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": _nanoseconds(span.start),
        "endTimeUnixNano": _nanoseconds(span.start if span.end is None else span.end),
        "attributes": _attributes(_described(span)),
        "status": {"code": _ERROR, "message": span.error} if span.error else {},
    }
    if parent := _digest(span.parent, 8) if span.parent else outer_span:
        found["parentSpanId"] = parent
    return found


def _described(span: TraceSpan) -> Mapping[str, str | int | float | bool | None]:
    name, kind = _OPERATIONS[span.kind]
    signal, attempt = span.signal, span.attempt
    return {
        "messaging.system": "signalbus",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": signal.type,
        "messaging.destination.subscription.name": span.subscription or None,
        "messaging.message.id": signal.id,
        "messaging.message.conversation_id": signal.correlationid,
        "error.type": span.error.partition(":")[0] or None,
        "signalbus.outcome": span.word,
        "signalbus.attempt": attempt.number if attempt else None,
        "signalbus.queued_seconds": attempt.queued if attempt else None,
        "signalbus.inferred": ", ".join(_inferred(span)) or None,
        "signalbus.unfinished": True if span.end is None else None,
    }


def _inferred(span: TraceSpan) -> Sequence[str]:
    if span.attempt is not None:
        return span.attempt.inferred
    told = span.kind is SpanKind.RESPOND or span.signal.published is not None
    return () if told else ("publication",)


def _resource(origin: Origin | None) -> Mapping[str, str | int | float | bool | None]:
    if origin is None:
        return {"service.name": "unknown_service"}
    return {
        "service.name": origin.name or "unknown_service",
        "service.instance.id": origin.session,
        "host.name": origin.host or None,
        "process.pid": origin.pid or None,
    }


def _attributes(values: Mapping[str, str | int | float | bool | None]) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items() if value is not None]


def _value(value: str | float | bool) -> dict[str, object]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}


def _nanoseconds(at: float) -> str:
    """Return nanoseconds since 1970, as far as the field goes."""
    return str(min(max(round(at * 1e9), 0), 2**64 - 1))
