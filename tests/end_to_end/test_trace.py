"""One trace follows a batch from the socket into the lake: the context travels in the Kafka headers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from schemas.telemetry import METRICS, SPANS
from tests.support.stack import stack

pytestmark = pytest.mark.timeout(900)


class Collector:
    """What an OTLP/HTTP collector received."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.metrics: set[str] = set()
        self.lock = threading.Lock()

    def named(self, service: str, name: str) -> list[Span]:
        with self.lock:
            return [span for owner, span in self.spans if owner == f"post-explorer-{service}" and span.name == name]

    def take(self, path: str, body: bytes) -> None:
        with self.lock:
            if path == "/v1/traces":
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    attributes = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        self.spans += [(attributes["service.name"], span) for span in scope.spans]
            elif path == "/v1/metrics":
                for resource_metrics in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                    for scope_metrics in resource_metrics.scope_metrics:
                        self.metrics |= {metric.name for metric in scope_metrics.metrics}


@contextmanager
def collector() -> Iterator[tuple[str, Collector]]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
            """Tests print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_batch_is_one_trace_from_socket_to_manifest(tmp_path: Path) -> None:
    with collector() as (endpoint, received):
        environment = {
            "EXPLORER_SIMULATOR_HISTORY_HOURS": "1",
            "EXPLORER_SIMULATOR_HISTORY_RATE": "1",
            "EXPLORER_SIMULATOR_RATE": "50",
            "EXPLORER_WRITER_BATCH_AGE_SECONDS": "0.5",
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        with stack(tmp_path, **environment) as running:
            running.start("broker", "simulator", "writer", "producer")

            def followed() -> bool:
                produced = {span.trace_id for span in received.named("producer", "source.batch")}
                linked = {link.trace_id for span in received.named("writer", "writer.batch") for link in span.links}
                return bool(produced & linked)

            running.until(followed, "a writer's batch links to a producer's")
            running.until(lambda: bool(received.named("writer", "writer.commit")), "a commit is traced")
            running.until(lambda: "explorer.writer.rows" in received.metrics, "rows are counted")
            assert running.stop() == []
        commit = received.named("writer", "writer.commit")[0]
        batches = {span.span_id: span for span in received.named("writer", "writer.batch")}
        assert any(span.trace_id == commit.trace_id for span in batches.values())
        ours = {span.name for owner, span in received.spans if owner.startswith("post-explorer-")}
        assert ours <= SPANS.keys(), "every span is declared in schemas/telemetry.py"
        assert {name for name in received.metrics if name.startswith("explorer.")} <= METRICS.keys()
