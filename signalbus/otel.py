"""Sending spans and metrics to a collector over OTLP, for programs that set nothing up themselves.

Needs ``pip install 'signalbus-router[otel]'``. Where to, and how, is said by the standard variables of OpenTelemetry
(https://opentelemetry.io/docs/specs/otel/protocol/exporter/): ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_SERVICE_NAME``,
``OTEL_TRACES_SAMPLER`` ... `signalbus run` calls `install_if_asked` before it begins.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from .errors import ConfigError

_ASKS = (
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
)


def install_if_asked(service: str) -> bool:
    """Install exporters if a variable of OpenTelemetry names a collector; return whether.

    Nothing happens if ``OTEL_SDK_DISABLED`` is true, or a provider was installed before. Raises `ConfigError` if a
    collector is named and the packages are not there.
    """
    asked = any(os.environ.get(name) for name in _ASKS)
    if not asked or os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if find_spec("opentelemetry.sdk") is None or find_spec("opentelemetry.exporter") is None:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT names a collector, but the packages that send there are not installed; "
            "pip install 'signalbus-router[otel]', or unset it"
        )
    return install(service)


def install(service: str) -> bool:
    """Install providers that send to an OTLP collector in batches, and flush at exit; return whether they are ours.

    ``service`` is the resource's ``service.name`` unless ``OTEL_SERVICE_NAME`` says otherwise.
    """
    from opentelemetry import metrics, trace
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return False
    # The environment wins: it is merged in by `create`.
    resource = Resource.create() if os.environ.get("OTEL_SERVICE_NAME") else Resource.create({"service.name": service})
    tracers = TracerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())], resource=resource))
    return True
