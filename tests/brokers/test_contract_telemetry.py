"""The contract suite with telemetry that fails in every way: what the bus does must not depend on it.

``make test`` runs it on the embedded broker. With telemetry off, all of it runs in ``test_contract_*.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

from tests.brokers import contract
from tests.brokers.suite import NAMES, SUITE
from tests.brokers.world import World


class Broken(Exception):
    """What this telemetry raises."""


class BrokenExporter(SpanExporter):
    """Exports nothing, with an exception."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        raise Broken

    def shutdown(self) -> None:
        raise Broken


class BrokenProcessor(SpanProcessor):
    """Fails at the start of every third span, and at every end."""

    def __init__(self) -> None:
        self.started = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self.started += 1
        if self.started % 3 == 0:
            raise Broken

    def on_end(self, span: ReadableSpan) -> None:
        raise Broken


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokenProcessor]:
    """An SDK whose exporter and processor raise."""
    processor = BrokenProcessor()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(processor)
    tracers.add_span_processor(SimpleSpanProcessor(BrokenExporter()))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.trace._TRACER_PROVIDER", tracers)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", meters)
    yield processor
    meters.shutdown()


@pytest.mark.parametrize("behaviour", SUITE, ids=NAMES)
@pytest.mark.parametrize("broker", ["sqlite"])
async def test_contract_with_broken_telemetry(
    behaviour: contract.Behaviour, broker: str, broken: BrokenProcessor, sqlite_world: World
) -> None:
    await behaviour(sqlite_world)


@pytest.mark.rabbitmq
@pytest.mark.slow
@pytest.mark.parametrize("behaviour", SUITE, ids=NAMES)
@pytest.mark.parametrize("broker", ["rabbitmq-quorum"])
async def test_contract_with_broken_telemetry_on_rabbitmq(
    behaviour: contract.Behaviour, broker: str, broken: BrokenProcessor, rabbitmq_world: World
) -> None:
    await behaviour(rabbitmq_world)


async def test_the_broken_telemetry_is_really_used(broken: BrokenProcessor, tmp_path: Path) -> None:
    world = World(f"sqlite:///{tmp_path}/bus.db", tmp_path)
    await contract.models_are_validated_on_the_way_in(world)
    assert broken.started >= 2  # publishing and handling
    await world.aclose()
