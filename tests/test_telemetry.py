"""Spans and measurements as the semantic conventions for messaging have them, and providers that misbehave."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    NumberDataPoint,
)
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceState
from opentelemetry.util.types import Attributes

from signalbus import Retry, Signal
from signalbus.background import LIMIT, Background
from signalbus.codec import PREFIX, EncodedSignal, HeaderValue
from signalbus.errors import Unroutable
from signalbus.telemetry import BUCKETS, LOOK_SECONDS, Operation, Telemetry

TRACE = 0x0AF7651916CD43DD8448EB211C80319C
SPAN = 0xB7AD6B7169203331
TRACEPARENT = f"00-{TRACE:032x}-{SPAN:016x}-01"
DEADLINE = 10.0


def signal(signal_type: str, signal_id: str, **context: str | None) -> EncodedSignal:
    """A signal with a context of its own, or without."""
    headers: dict[str, HeaderValue] = {f"{PREFIX}{name}": value for name, value in context.items() if value is not None}
    return EncodedSignal(signal_id, signal_type, headers, b"", None)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Boom(Exception):
    pass


@dataclass
class Sdk:
    """An SDK that is installed for one test."""

    spans: InMemorySpanExporter
    reader: InMemoryMetricReader
    provider: TracerProvider
    telemetry: Telemetry

    async def finished(self) -> list[ReadableSpan]:
        """Stop, and return the spans in the order of their ends."""
        await self.telemetry.aclose(DEADLINE)
        return list(self.spans.get_finished_spans())

    def points(self) -> dict[str, list[tuple[dict[str, object], int]]]:
        """Return attributes and counts of all data points, by metric."""
        found: dict[str, list[tuple[dict[str, object], int]]] = {}
        data = self.reader.get_metrics_data()
        assert data is not None
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                assert scope.scope.name == "signalbus"
                for metric in scope.metrics:
                    assert metric.unit == ("s" if metric.name.endswith("duration") else "{message}")
                    for point in metric.data.data_points:
                        count = point.value if isinstance(point, NumberDataPoint) else point.count
                        if isinstance(point, HistogramDataPoint):
                            assert tuple(point.explicit_bounds) == BUCKETS
                        found.setdefault(metric.name, []).append((dict(point.attributes or {}), int(count)))
        return found


def install(monkeypatch: pytest.MonkeyPatch, provider: trace.TracerProvider, meters: metrics.MeterProvider) -> None:
    # The API lets a process install them only once.
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", provider)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", meters)


@pytest.fixture
async def sdk(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sdk]:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader({})
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    meters = MeterProvider([reader], shutdown_on_exit=False)
    install(monkeypatch, provider, meters)
    telemetry = Telemetry(client_id="session-1")
    yield Sdk(spans, reader, provider, telemetry)
    await telemetry.aclose()
    provider.shutdown()
    meters.shutdown()


def provider_with(*processors: SpanProcessor, sampler: Sampler | None = None) -> TracerProvider:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    return provider


def links_of(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def context_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


# Spans


async def test_a_publish_is_a_producer_span_whose_context_goes_into_the_signal(sdk: Sdk) -> None:
    with sdk.telemetry.sending(signal("order.placed", "id-1", correlationid="c-1")) as operation:
        pass
    (span,) = await sdk.finished()
    assert (span.name, span.kind, span.links, span.parent) == ("send order.placed", SpanKind.PRODUCER, (), None)
    assert span.attributes == {
        "messaging.system": "signalbus",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "order.placed",
        "messaging.message.id": "id-1",
        "messaging.message.conversation_id": "c-1",
        "messaging.client.id": "session-1",
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "signalbus"
    trace_id, span_id = context_of(span)
    assert span.context is not None
    flags = span.context.trace_flags
    assert flags.sampled
    assert (operation.traceparent, operation.tracestate) == (f"00-{trace_id:032x}-{span_id:016x}-{flags:02x}", None)


async def test_a_signal_that_carries_a_context_keeps_it_and_is_linked(sdk: Sdk) -> None:
    with sdk.telemetry.sending(signal("a.b", "id-1", traceparent=TRACEPARENT, tracestate="v=1")) as operation:
        pass
    (span,) = await sdk.finished()
    assert (operation.traceparent, operation.tracestate) == (TRACEPARENT, "v=1")
    assert span.kind is SpanKind.CLIENT  # the conventions' kind where another context is the signal's
    assert links_of(span) == [(TRACE, SPAN)]
    assert span.parent is None


async def test_a_handler_run_is_a_consumer_span_under_the_producer_and_linked_to_it(sdk: Sdk) -> None:
    with trace.get_tracer("ambient").start_as_current_span("whoever opened the bus"):  # noqa: SIM117
        with sdk.telemetry.processing(
            signal("order.placed", "id-1", traceparent=TRACEPARENT, tracestate="v=1"), "billing"
        ):
            pass
    span, _ = sorted(await sdk.finished(), key=lambda span: span.kind is not SpanKind.CONSUMER)
    assert (span.name, span.kind) == ("process order.placed", SpanKind.CONSUMER)
    assert parent_of(span) == (TRACE, SPAN)
    assert links_of(span) == [(TRACE, SPAN)]
    assert span.context is not None
    assert span.context.trace_state.to_header() == "v=1"
    assert span.attributes == {
        "messaging.system": "signalbus",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "order.placed",
        "messaging.destination.subscription.name": "billing",
        "messaging.message.id": "id-1",
        "messaging.client.id": "session-1",
    }


async def test_what_a_handler_publishes_goes_on_the_trace(sdk: Sdk) -> None:
    with sdk.telemetry.sending(signal("a", "1")) as first:
        pass
    with (
        sdk.telemetry.processing(signal("a", "1", traceparent=first.traceparent), "s"),
        sdk.telemetry.sending(signal("b", "2")),
    ):
        pass
    assert not trace.get_current_span().get_span_context().is_valid
    spans = {span.name: span for span in await sdk.finished()}
    assert parent_of(spans["process a"]) == context_of(spans["send a"])
    assert parent_of(spans["send b"]) == context_of(spans["process a"])
    assert len({context_of(span)[0] for span in spans.values()}) == 1


@pytest.mark.parametrize("traceparent", [None, "", "rubbish", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "x" * 2000])
async def test_a_handler_run_without_a_readable_context_begins_a_trace(sdk: Sdk, traceparent: str | None) -> None:
    with (
        trace.get_tracer("ambient").start_as_current_span("ambient"),
        sdk.telemetry.processing(signal("a", "1", traceparent=traceparent), "s"),
    ):
        pass
    (span,) = [span for span in await sdk.finished() if span.name == "process a"]
    assert (span.parent, span.links) == (None, ())
    assert sdk.telemetry.errors == 0


async def test_a_request_is_a_client_span_and_its_handling_a_server_span_below(sdk: Sdk) -> None:
    with sdk.telemetry.requesting(signal("quote.get", "id-1")) as request:  # noqa: SIM117
        with sdk.telemetry.responding(signal("quote.get", "id-1", traceparent=request.traceparent)):
            pass
    spans = {span.kind: span for span in await sdk.finished()}
    client, server = spans[SpanKind.CLIENT], spans[SpanKind.SERVER]
    assert (client.name, server.name) == ("request quote.get", "respond quote.get")
    assert parent_of(server) == context_of(client)
    assert (client.links, server.links) == ((), ())
    assert client.attributes == {
        "messaging.system": "signalbus",
        "messaging.operation.name": "request",
        "messaging.operation.type": "send",
        "messaging.destination.name": "quote.get",
        "messaging.message.id": "id-1",
        "messaging.client.id": "session-1",
    }
    assert server.attributes == dict(client.attributes or {}) | {
        "messaging.operation.name": "respond",
        "messaging.operation.type": "process",
    }


async def test_an_exception_is_the_failure_of_the_span_and_passes(sdk: Sdk) -> None:
    with pytest.raises(Unroutable), sdk.telemetry.sending(signal("a", "1")):
        raise Unroutable("1", "a")
    with pytest.raises(ValueError, match="bad"), sdk.telemetry.processing(signal("a", "1"), "s"):
        raise ValueError("bad")
    with sdk.telemetry.responding(signal("a", "1")) as operation:
        operation.fail(Boom("no"))
    spans = await sdk.finished()
    assert [span.status.status_code for span in spans] == [StatusCode.ERROR] * 3
    assert [(span.attributes or {}).get("error.type") for span in spans] == [
        "signalbus.errors.Unroutable",
        "ValueError",
        f"{Boom.__module__}.Boom",
    ]
    assert [span.status.description for span in spans[1:]] == ["bad", "no"]


async def test_a_retry_is_control_flow_not_an_error(sdk: Sdk) -> None:
    with pytest.raises(Retry), sdk.telemetry.processing(signal("a", "1"), "s"):
        raise Retry
    (span,) = await sdk.finished()
    assert span.status.status_code is StatusCode.UNSET
    assert "error.type" not in (span.attributes or {})


async def test_a_span_that_is_not_sampled_still_gives_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, provider_with(sampler=ALWAYS_OFF), metrics.NoOpMeterProvider())
    telemetry = Telemetry()
    with telemetry.sending(signal("a", "1")) as operation:
        pass
    await telemetry.aclose()
    assert operation.traceparent is not None
    assert int(operation.traceparent[-2:], 16) & trace.TraceFlags.SAMPLED == 0
    assert telemetry.errors == 0


async def test_a_span_takes_as_long_as_its_operation_not_as_its_export(sdk: Sdk) -> None:
    before = time.time_ns()
    with sdk.telemetry.sending(signal("a", "1")):
        pass
    after = time.time_ns()
    (span,) = await sdk.finished()
    assert span.start_time is not None
    assert span.end_time is not None
    assert before <= span.start_time <= span.end_time <= after + 1_000_000


# Measurements


async def test_operations_are_counted_and_timed(sdk: Sdk) -> None:
    for _ in range(2):
        with sdk.telemetry.sending(signal("a", "1")):
            pass
    with pytest.raises(Boom), sdk.telemetry.processing(signal("a", "1"), "s"):
        raise Boom
    with sdk.telemetry.requesting(signal("q", "2")), sdk.telemetry.responding(signal("q", "2")):
        pass
    await sdk.finished()
    send = {
        "messaging.system": "signalbus",
        "messaging.operation.name": "send",
        "messaging.destination.name": "a",
    }
    process = send | {
        "messaging.operation.name": "process",
        "messaging.destination.subscription.name": "s",
        "error.type": f"{Boom.__module__}.Boom",
    }
    request = send | {"messaging.operation.name": "request", "messaging.destination.name": "q"}
    respond = request | {"messaging.operation.name": "respond"}
    kind = {"messaging.operation.type": "send"}
    assert sdk.points() == {
        "messaging.client.sent.messages": [(send, 2), (request, 1)],
        "messaging.client.consumed.messages": [(process, 1), (respond, 1)],
        "messaging.client.operation.duration": [(send | kind, 2), (request | kind, 1)],
        "messaging.process.duration": [(process, 1), (respond, 1)],
    }


async def test_measurements_need_no_tracing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader({})
    meters = MeterProvider([reader], shutdown_on_exit=False)
    install(monkeypatch, trace.NoOpTracerProvider(), meters)
    telemetry = Telemetry()
    with telemetry.sending(signal("a", "1", traceparent=TRACEPARENT)) as operation:
        pass
    assert operation.traceparent == TRACEPARENT
    await telemetry.aclose(DEADLINE)
    assert "messaging.client.sent.messages" in Sdk(InMemorySpanExporter(), reader, TracerProvider(), telemetry).points()
    meters.shutdown()


# Without an SDK


def test_without_an_sdk_nothing_is_imported_and_contexts_are_kept() -> None:
    program = (
        "import sys, signalbus.telemetry as t\n"
        "from signalbus.codec import EncodedSignal\n"
        f"signal = EncodedSignal('1', 'a', {{'cloudEvents_traceparent': {TRACEPARENT!r}}}, b'', None)\n"
        "telemetry = t.Telemetry()\n"
        "with telemetry.sending(signal) as one: pass\n"
        "with telemetry.processing(signal, 's') as two: pass\n"
        "assert one.carried_by(signal) is signal and two.traceparent is None\n"
        "print(any(name.partition('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "False"


@pytest.mark.parametrize("tracers", [None, trace.NoOpTracerProvider(), trace.ProxyTracerProvider()])
def test_providers_that_do_nothing_are_skipped(
    monkeypatch: pytest.MonkeyPatch, tracers: trace.TracerProvider | None
) -> None:
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", tracers)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
    operation = Telemetry().sending(signal("a", "1"))
    assert type(operation) is Operation


async def test_an_sdk_that_is_disabled_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    install(monkeypatch, TracerProvider(shutdown_on_exit=False), MeterProvider([], shutdown_on_exit=False))
    assert type(Telemetry().sending(signal("a", "1"))) is Operation


async def test_an_sdk_that_is_installed_later_is_noticed(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    telemetry = Telemetry(clock=clock)
    with monkeypatch.context() as before:
        before.setattr("opentelemetry.trace._TRACER_PROVIDER", None)
        before.setattr("opentelemetry.metrics._internal._METER_PROVIDER", None)
        with telemetry.sending(signal("early", "1")):
            pass
    clock.now += LOOK_SECONDS / 2
    with telemetry.sending(signal("soon", "2")):
        pass
    clock.now += LOOK_SECONDS / 2
    with telemetry.sending(signal("late", "3")):
        pass
    await telemetry.aclose(DEADLINE)
    assert [span.name for span in sdk.spans.get_finished_spans()] == ["send late"]


# Foreign code


class Misbehaving(SpanProcessor):
    """Raises where it is told."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.where = where
        self.error = error

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if self.where == "start":
            raise self.error

    def on_end(self, span: ReadableSpan) -> None:
        if self.where == "end":
            raise self.error


class Exporter(SpanExporter):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise self.error


class Sampling(Sampler):
    """Raises, waits or answers with a trace state, as told."""

    def __init__(self, *, error: BaseException | None = None, state: str | None = None) -> None:
        self.error = error
        self.state = state

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        if self.error is not None:
            raise self.error
        state = None if self.state is None else TraceState([("k", self.state)])
        return SamplingResult(Decision.RECORD_AND_SAMPLE, trace_state=state)

    def get_description(self) -> str:
        return "Sampling"


class Rude(trace.TracerProvider):
    """A provider that has nothing of what was promised."""

    def get_tracer(self, *args: object, **kwargs: object) -> trace.Tracer:
        return object()  # type: ignore[return-value]


ERRORS = [Boom("no"), asyncio.CancelledError(), SystemExit(3)]


def misbehaving(where: str, error: BaseException) -> TracerProvider | Rude:
    match where:
        case "sampler":
            return provider_with(sampler=Sampling(error=error))
        case "exporter":
            return provider_with(SimpleSpanProcessor(Exporter(error)))
        case "provider":
            return Rude()
        case _:
            return provider_with(Misbehaving(where, error))


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("where", ["sampler", "start", "end", "provider"])
async def test_whatever_foreign_code_raises_the_bus_goes_on(
    where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, misbehaving(where, error), metrics.NoOpMeterProvider())
    telemetry = Telemetry()
    done = []
    for _ in range(3):
        with telemetry.processing(signal("a", "1"), "s"), telemetry.sending(signal("b", "2")) as operation:
            done.append(operation)
            Signal(type="b", traceparent=operation.traceparent, tracestate=operation.tracestate)
    with pytest.raises(ValueError, match="the handler's own"), telemetry.responding(signal("a", "1")):
        raise ValueError("the handler's own")
    await telemetry.aclose(DEADLINE)
    assert len(done) == 3
    assert telemetry.errors == 7
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.records[0].exc_info is not None
    assert not trace.get_current_span().get_span_context().is_valid


async def test_an_exporter_that_raises_is_the_sdks_to_report(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, misbehaving("exporter", Boom("no")), metrics.NoOpMeterProvider())
    telemetry = Telemetry()
    with telemetry.sending(signal("a", "1")):
        pass
    await telemetry.aclose(DEADLINE)


async def test_meters_that_raise_are_contained(sdk: Sdk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meters(metrics.NoOpMeterProvider):
        pass

    class Instrument:
        def add(self, *arguments: object) -> None:
            raise Boom("no")

        record = add

    class Meter:
        def create_counter(self, *arguments: object, **more: object) -> Instrument:
            return Instrument()

        create_histogram = create_counter

    class Provider:
        def get_meter(self, name: str) -> Meter:
            return Meter()

    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", Provider())
    with sdk.telemetry.sending(signal("a", "1")):
        pass
    spans = await sdk.finished()
    assert sdk.telemetry.errors == 1
    assert [span.name for span in spans] == ["send a"]  # the span is ended all the same


@pytest.mark.parametrize("state", ["x" * 240 + "y", "plain"])
async def test_a_trace_state_always_fits_into_the_signal(monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    install(monkeypatch, provider_with(sampler=Sampling(state=state)), metrics.NoOpMeterProvider())
    telemetry = Telemetry()
    with telemetry.sending(signal("a", "1")) as operation:
        pass
    await telemetry.aclose()
    Signal(type="a", traceparent=operation.traceparent, tracestate=operation.tracestate)
    assert operation.tracestate == f"k={state}"


async def test_a_trace_state_beyond_the_limit_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Long(Sampling):
        def should_sample(self, *arguments: object, **more: object) -> SamplingResult:
            state = TraceState([(f"k{index}", "x" * 200) for index in range(20)])
            return SamplingResult(Decision.RECORD_AND_SAMPLE, trace_state=state)

    install(monkeypatch, provider_with(sampler=Long()), metrics.NoOpMeterProvider())
    telemetry = Telemetry()
    with telemetry.sending(signal("a", "1")) as operation:
        pass
    await telemetry.aclose()
    assert operation.traceparent is not None
    assert operation.tracestate is None


async def test_an_exception_that_cannot_be_described_is_contained(sdk: Sdk) -> None:
    class Dumb(Exception):
        def __str__(self) -> str:
            raise Boom("no words")

    with pytest.raises(Dumb), sdk.telemetry.sending(signal("a", "1")):
        raise Dumb
    (span,) = await sdk.finished()
    assert span.status.status_code is StatusCode.ERROR
    assert sdk.telemetry.errors == 1


async def test_a_slow_end_does_not_hold_up_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    let_go, entered = threading.Event(), threading.Event()

    class Slow(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            entered.set()
            let_go.wait(DEADLINE)

    install(monkeypatch, provider_with(Slow()), metrics.NoOpMeterProvider())
    telemetry = Telemetry()
    with telemetry.sending(signal("a", "1")):
        pass
    assert await asyncio.to_thread(entered.wait, DEADLINE)
    for _ in range(10):
        with telemetry.sending(signal("a", "1")):
            pass
    await telemetry.aclose(0.01)  # ends though the processor does not
    assert telemetry.dropped == 10
    await telemetry.aclose(0.01)
    let_go.set()


async def test_slow_starts_pause_telemetry_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, spans = Clock(), InMemorySpanExporter()

    class Slow(Sampling):
        def should_sample(self, *arguments: object, **more: object) -> SamplingResult:
            clock.now += 0.4
            return SamplingResult(Decision.RECORD_AND_SAMPLE)

    install(monkeypatch, provider_with(SimpleSpanProcessor(spans), sampler=Slow()), metrics.NoOpMeterProvider())
    telemetry = Telemetry(clock=clock)
    for _ in range(10_000):
        clock.now += 0.01
        with telemetry.sending(signal("a", "1")):
            pass
    await telemetry.aclose(DEADLINE)
    elapsed = clock.now - 1000.0
    held_up = 0.4 * len(spans.get_finished_spans())
    assert 0.03 * elapsed < held_up <= 0.05 * elapsed + 1.4
    assert telemetry.errors == len(spans.get_finished_spans())


async def test_after_closing_nothing_is_observed(sdk: Sdk) -> None:
    await sdk.telemetry.aclose()
    with sdk.telemetry.sending(signal("a", "1")) as operation:
        pass
    assert type(operation) is Operation
    assert await sdk.finished() == []


# The thread


async def test_work_in_the_background_is_bounded() -> None:
    let_go, entered = threading.Event(), threading.Event()
    done: list[int] = []

    def block() -> None:
        entered.set()
        let_go.wait(DEADLINE)

    background = Background("test", lambda error, what: pytest.fail(what))
    background.put(block)
    assert await asyncio.to_thread(entered.wait, DEADLINE)
    for index in range(LIMIT + 5):
        background.put(lambda index=index: done.append(index))  # type: ignore[misc]
    assert background.dropped == 5
    let_go.set()
    await background.aclose(DEADLINE)
    assert done == list(range(LIMIT))
    background.put(lambda: done.append(-1))
    assert background.dropped == 6
