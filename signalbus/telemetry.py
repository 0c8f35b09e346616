"""OpenTelemetry spans and metrics of messaging, for people who have a collector.

Follows the semantic conventions for messaging as of 20 August 2026 (status "development"):
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/. Documented choices:
``messaging.system`` is ``signalbus`` over every broker, the destination is the signal's type, and a handler's span is
a child of the span that published the signal, with a link to it; the ambient context is not used for it, since
handlers run in tasks that have nothing to do with whoever opened the bus.

Telemetry observes and never steers. Providers, samplers, processors and exporters are foreign code: what they raise is
counted and the first of it logged; what can wait (ends of spans, measurements) is done by a thread of its own; and
when starts of spans hold up the event loop for more than a second, there are none until that is 5 % of the time.
Without an SDK nothing is imported or done.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from .background import Background
from .codec import CORRELATION, TRACE_PARENT, TRACE_STATE, EncodedSignal, text_header, with_headers
from .errors import Retry

if TYPE_CHECKING:
    from contextvars import Token

    from opentelemetry.context import Context
    from opentelemetry.metrics import Counter, Histogram
    from opentelemetry.trace import Link, Span, Tracer

log = logging.getLogger(__name__)

SCOPE = "signalbus"
SYSTEM = "signalbus"
LOOK_SECONDS = 1.0  # between looks for a provider that was installed or replaced
SLOW_SECONDS = 0.1  # a start of a span takes some 30 microseconds; on a busy machine the scheduler adds to that
PATIENCE_SECONDS = 1.0  # of slow starts, then telemetry pauses
SHARE = 0.05  # of the event loop's time that slow starts may take in the long run
CLOSE_SECONDS = 2.0
TRACESTATE_LIMIT = 512  # characters: W3C Trace Context, 3.3.1.5; our signals refuse far longer ones
MESSAGE_LIMIT = 1_024
#: Advised by the conventions, in seconds.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)

_MODULES = ("opentelemetry.trace", "opentelemetry.metrics")
_VARIABLES = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A kind of operation. ``type`` and ``span`` are names of the conventions; ``incoming``: a message is handled."""

    name: str
    type: str
    span: str
    incoming: bool


_SEND = _Kind(name="send", type="send", span="PRODUCER", incoming=False)
_PROCESS = _Kind(name="process", type="process", span="CONSUMER", incoming=True)
_REQUEST = _Kind(name="request", type="send", span="CLIENT", incoming=False)
_RESPOND = _Kind(name="respond", type="process", span="SERVER", incoming=True)


class Operation:
    """What is observed from entering to leaving. An exception that passes is its failure, except `Retry`.

    ``traceparent`` and ``tracestate`` are the context of a signal that is sent; None if there is none but its own.
    This one observes nothing; it is what there is without an SDK.
    """

    __slots__ = ("traceparent", "tracestate")

    def __init__(self, traceparent: str | None = None, tracestate: str | None = None) -> None:
        self.traceparent = traceparent
        self.tracestate = tracestate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def fail(self, error: BaseException) -> None:
        """Note a failure that does not pass as an exception."""

    def carried_by(self, signal: EncodedSignal) -> EncodedSignal:
        """Return a signal that is sent, with the context that it is to carry."""
        if self.traceparent is None or signal.headers.get(TRACE_PARENT) == self.traceparent:
            return signal
        return with_headers(signal, traceparent=self.traceparent, tracestate=self.tracestate)


class Telemetry:
    """Observes the operations of one bus. Event loop only. ``errors`` counts what foreign code raised or took long."""

    def __init__(self, *, client_id: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.errors = 0
        self._client_id = client_id
        self._clock = clock
        self._look_at = float("-inf")
        self._on = False
        self._held_up = 0.0  # seconds that slow starts took, less what was paid off since
        self._held_up_at = 0.0
        self._tracer: Tracer | None = None
        self._instruments: _Instruments | None = None
        self._providers: tuple[object, object] | None = None
        self._background = Background("signalbus-telemetry", self.failed)
        self._nothing = Operation()

    def sending(self, signal: EncodedSignal) -> Operation:
        """Observe the publishing of a signal (PRODUCER). One that carries a context already keeps it (CLIENT)."""
        return self._begin(_SEND, signal) if self.active else self._nothing

    def processing(self, signal: EncodedSignal, subscription: str) -> Operation:
        """Observe a handler run (CONSUMER). Its context is current within, so what it publishes goes on the trace."""
        return self._begin(_PROCESS, signal, subscription) if self.active else self._nothing

    def requesting(self, request: EncodedSignal) -> Operation:
        """Observe a request until its reply (CLIENT)."""
        return self._begin(_REQUEST, request) if self.active else self._nothing

    def responding(self, request: EncodedSignal) -> Operation:
        """Observe the handling of a request (SERVER). Its context is current within."""
        return self._begin(_RESPOND, request) if self.active else self._nothing

    @property
    def active(self) -> bool:
        """Whether anything is observed, or it is time to look whether it should be."""
        return self._on or self._clock() >= self._look_at

    @property
    def dropped(self) -> int:
        """How many ends of operations were dropped because the provider was too slow to take them."""
        return self._background.dropped

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:
        """Hand over what is waiting, within ``timeout`` seconds, and stop. Idempotent, never raises."""
        self._look_at, self._on = float("inf"), False
        await self._background.aclose(timeout)

    def failed(self, error: BaseException, what: str) -> None:
        """Count an error of foreign code, and log the first. From any thread."""
        self.errors += 1
        if self.errors == 1:
            log.warning("telemetry failed (%s); the bus goes on, further errors are only counted", what, exc_info=error)

    def _begin(self, kind: _Kind, signal: EncodedSignal, subscription: str | None = None) -> Operation:
        operation: Operation | None = None
        try:
            if self._clock() >= self._look_at:
                self._look()
            if self._on:
                operation = self._observed(_message(kind, signal, subscription, self._client_id))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - foreign code; no real cancellation comes where nothing awaits
            self.failed(error, "starting a span")
        return operation if operation is not None else self._nothing

    def _observed(self, message: _Message) -> Operation:
        started = self._clock()
        try:
            return _Observed(message, self._tracer, self._instruments, self._background, self.failed)
        finally:
            self._account(self._clock() - started)

    def _account(self, seconds: float) -> None:
        """Leave telemetry off for a while once it has held up the event loop for too long."""
        if seconds <= SLOW_SECONDS:
            return
        now = self._clock()
        self._held_up = max(0.0, self._held_up - SHARE * (now - self._held_up_at)) + seconds
        self._held_up_at = now
        self.failed(TimeoutError(f"starting a span took {seconds:.3f} s"), "it is slow")
        if self._held_up > PATIENCE_SECONDS:
            self._on = False
            self._look_at = now + self._held_up / SHARE

    def _look(self) -> None:
        """See whether there is a provider that does something."""
        self._look_at = self._clock() + LOOK_SECONDS
        if any(name in sys.modules for name in _MODULES) or any(name in os.environ for name in _VARIABLES):
            trace = importlib.import_module("opentelemetry.trace")
            metrics = importlib.import_module("opentelemetry.metrics")
            importlib.import_module("opentelemetry.trace.propagation.tracecontext")  # now, not in the first span
            providers = (trace.get_tracer_provider(), metrics.get_meter_provider())
            if self._providers is None or any(a is not b for a, b in zip(providers, self._providers, strict=True)):
                self._tracer, self._instruments = _tracer(), _instruments()
                self._providers = providers
        self._on = self._tracer is not None or self._instruments is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    kind: _Kind
    type: str
    id: str
    subscription: str | None
    traceparent: str | None
    tracestate: str | None
    correlationid: str | None
    client_id: str | None


def _message(kind: _Kind, signal: EncodedSignal, subscription: str | None, client_id: str | None) -> _Message:
    return _Message(
        kind=kind,
        type=signal.type,
        id=signal.id,
        subscription=subscription,
        traceparent=text_header(signal, TRACE_PARENT),
        tracestate=text_header(signal, TRACE_STATE),
        correlationid=text_header(signal, CORRELATION),
        client_id=client_id,
    )


class _Observed(Operation):
    """An operation with a span, or with measurements, or both."""

    __slots__ = (
        "_attributes",
        "_background",
        "_begun",
        "_context",
        "_error",
        "_failed",
        "_instruments",
        "_kind",
        "_span",
        "_started_ns",
        "_token",
    )

    def __init__(
        self,
        message: _Message,
        tracer: Tracer | None,
        instruments: _Instruments | None,
        background: Background,
        failed: Callable[[BaseException, str], None],
    ) -> None:
        super().__init__(message.traceparent, message.tracestate)
        self._kind = message.kind
        self._instruments = instruments
        self._background = background
        self._failed = failed
        self._error: tuple[str, str] | None = None
        self._context: Context | None = None
        self._span: Span | None = None
        self._token: Token[Context] | None = None
        self._attributes = _common_attributes(message)
        self._started_ns = time.time_ns()
        self._begun = time.perf_counter_ns()
        if tracer is not None:
            self._start_span(message, tracer)

    def __enter__(self) -> Self:
        if self._context is not None and self._kind.incoming:
            try:
                from opentelemetry.context import attach

                self._token = attach(self._context)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - foreign code
                self._failed(error, "making a context current")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took = time.perf_counter_ns() - self._begun
        try:
            self._leave()
            if error is not None:
                self.fail(error)
        except KeyboardInterrupt:
            raise
        except BaseException as problem:  # noqa: BLE001 - foreign code
            self._failed(problem, "leaving a span")
        self._background.put(lambda: self._finish(took))

    def fail(self, error: BaseException) -> None:
        """Note a failure that does not pass as an exception."""
        if isinstance(error, Retry):
            return  # control flow, not an error
        kind = type(error)
        name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        try:
            text = str(error)[:MESSAGE_LIMIT]
        except Exception as problem:  # noqa: BLE001 - foreign code: an exception's own __str__
            text = ""
            self._failed(problem, "describing an exception")
        self._error = (name, text)

    def _start_span(self, message: _Message, tracer: Tracer) -> None:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        kind = message.kind
        carried = _carried_context(message.traceparent, message.tracestate)
        # A send whose context is not the one that consumers see is a CLIENT, by the conventions.
        span_kind = "CLIENT" if kind is _SEND and carried is not None else kind.span
        parent = (carried or Context()) if kind.incoming else None
        self._span = tracer.start_span(
            f"{kind.name} {message.type}",
            context=parent,
            kind=SpanKind[span_kind],
            attributes=self._attributes | _message_attributes(message),
            links=() if kind is _RESPOND else _links(carried),
            start_time=self._started_ns,
        )
        self._context = set_span_in_context(self._span, parent)
        if not kind.incoming and carried is None:
            self.traceparent, self.tracestate = _written(self._context)

    def _leave(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            from opentelemetry.context import detach

            detach(token)

    def _finish(self, took: int) -> None:
        """End the span and measure; in the background."""
        attributes = dict(self._attributes)
        if self._error is not None:
            attributes["error.type"] = self._error[0]
        try:
            if self._instruments is not None:
                self._instruments.measure(self._kind, took / 1e9, attributes, self._context)
        finally:
            if self._span is not None:
                _end(self._span, self._error, self._started_ns + took)


def _end(span: Span, error: tuple[str, str] | None, at: int) -> None:
    from opentelemetry.trace import Status, StatusCode

    try:
        if error is not None:
            span.set_attribute("error.type", error[0])
            span.set_status(Status(StatusCode.ERROR, error[1] or None))
    finally:
        span.end(at)


def _common_attributes(message: _Message) -> dict[str, str]:
    attributes = {
        "messaging.system": SYSTEM,
        "messaging.operation.name": message.kind.name,
        "messaging.operation.type": message.kind.type,
        "messaging.destination.name": message.type,
    }
    if message.subscription is not None:
        attributes["messaging.destination.subscription.name"] = message.subscription
    return attributes


def _message_attributes(message: _Message) -> dict[str, str]:
    attributes = {"messaging.message.id": message.id}
    if message.correlationid is not None:
        attributes["messaging.message.conversation_id"] = message.correlationid
    if message.client_id is not None:
        attributes["messaging.client.id"] = message.client_id
    return attributes


def _carried_context(traceparent: str | None, tracestate: str | None) -> Context | None:
    """Return the context that a signal carries, None if it carries none or one that cannot be read."""
    if traceparent is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {"traceparent": traceparent}
    if tracestate is not None:
        carrier["tracestate"] = tracestate
    context = TraceContextTextMapPropagator().extract(carrier, Context())
    return context if get_current_span(context).get_span_context().is_valid else None


def _links(carried: Context | None) -> tuple[Link, ...]:
    if carried is None:
        return ()
    from opentelemetry.trace import Link, get_current_span

    return (Link(get_current_span(carried).get_span_context()),)


def _written(context: Context) -> tuple[str | None, str | None]:
    """Return ``traceparent`` and ``tracestate`` of a context, None where a signal could not carry it."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, context)
    tracestate = carrier.get("tracestate") or None
    if tracestate and not (len(tracestate) <= TRACESTATE_LIMIT and tracestate.isascii() and tracestate.isprintable()):
        tracestate = None
    return carrier.get("traceparent"), tracestate


def _tracer() -> Tracer | None:
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider):
        return None
    tracer = provider.get_tracer(SCOPE)
    return None if isinstance(tracer, trace.NoOpTracer) else tracer  # an SDK that is disabled


class _Instruments:
    """The conventions' metrics."""

    def __init__(self, *, sent: Counter, consumed: Counter, operation: Histogram, process: Histogram) -> None:
        self._sent = sent
        self._consumed = consumed
        self._operation = operation
        self._process = process

    def measure(self, kind: _Kind, seconds: float, attributes: dict[str, str], context: Context | None) -> None:
        """Count and time one operation; ``context`` is for exemplars."""
        incoming = kind.incoming
        plain = {name: value for name, value in attributes.items() if name != "messaging.operation.type"}
        (self._consumed if incoming else self._sent).add(1, plain, context)
        if incoming:
            self._process.record(seconds, plain, context)
        else:
            self._operation.record(seconds, attributes, context)


def _instruments() -> _Instruments | None:
    from opentelemetry import metrics

    provider = metrics.get_meter_provider()
    # The API has no public name for its proxy, which would keep measurements nowhere.
    if isinstance(provider, metrics.NoOpMeterProvider) or type(provider).__name__ == "_ProxyMeterProvider":
        return None
    meter = provider.get_meter(SCOPE)
    if isinstance(meter, metrics.NoOpMeter):
        return None

    def counter(name: str, description: str) -> Counter:
        return meter.create_counter(name, "{message}", description)

    def histogram(name: str, description: str) -> Histogram:
        return meter.create_histogram(name, "s", description, explicit_bucket_boundaries_advisory=BUCKETS)

    return _Instruments(
        sent=counter("messaging.client.sent.messages", "Number of messages producer attempted to send to the broker."),
        consumed=counter(
            "messaging.client.consumed.messages", "Number of messages that were delivered to the application."
        ),
        operation=histogram(
            "messaging.client.operation.duration",
            "Duration of messaging operation initiated by a producer or consumer client.",
        ),
        process=histogram("messaging.process.duration", "Duration of processing operation."),
    )
