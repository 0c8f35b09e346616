"""The extra ``otel``: what a program sends to a collector that the environment names."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from signalbus.errors import ConfigError
from signalbus.otel import install_if_asked
from tests.cli.program import environment, running
from tests.support import eventually_sync

APP = """
from signalbus import Bus
bus = Bus(name="shop")

@bus.subscribe("order.*", name="billing")
async def bill(data: dict) -> None:
    pass
"""


class Collector:
    """An OTLP collector over HTTP, as far as it matters."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.spans: list[str] = []
        self.services: set[str] = set()
        self.metrics: set[str] = set()

    def take(self, path: str, body: bytes) -> None:
        if path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.services |= {
                    each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
                }
                self.spans += [span.name for scope in resource.scope_spans for span in scope.spans]
        elif path == "/v1/metrics":
            for metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.metrics |= {metric.name for scope in metrics.scope_metrics for metric in scope.metrics}


@pytest.fixture
def collector() -> Generator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found.take(self.path, gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Collector(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_sends_spans_and_metrics_to_the_collector_that_is_named(collector: Collector, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    env = environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_BSP_SCHEDULE_DELAY="100",
        OTEL_METRIC_EXPORT_INTERVAL="200",
    )
    with running("run", "shop:bus", cwd=tmp_path, env=env) as service:
        service.wait_err("serving")
        publish = [sys.executable, "-m", "signalbus.cli", "publish", "order.placed", "{}"]
        subprocess.run(publish, cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=60)
        eventually_sync(lambda: "process order.placed" in collector.spans, 20, message="the handler's span")
        eventually_sync(lambda: "messaging.process.duration" in collector.metrics, 20, message="its measurement")
    assert collector.services == {"shop"}


def test_a_collector_that_is_away_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APP)
    env = environment(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="100")
    with running("run", "shop:bus", cwd=tmp_path, env=env) as service:
        service.wait_err("serving")
        publish = [sys.executable, "-m", "signalbus.cli", "publish", "order.placed", "{}", "--until", "acked"]
        subprocess.run(publish, cwd=tmp_path, env=environment(), check=True, capture_output=True, timeout=60)


def test_nothing_is_installed_unless_a_collector_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert not install_if_asked("shop")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not install_if_asked("shop")


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("signalbus.otel.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'signalbus-router\[otel\]'"):
        install_if_asked("shop")
