"""The OpenTelemetry SDK, started once per process and only when somebody wants its data.

The rooms use the API alone, which costs nothing while no SDK is installed. What is exported where is decided by the
standard `OTEL_…` variables (OpenTelemetry specification, "Environment Variable Specification"); this module adds none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from opentelemetry import metrics, trace

from pipeline.errors import SettingsError

_REMEDY = "set it to otlp, console or none; OTLP goes out as http/protobuf (OTEL_EXPORTER_OTLP_ENDPOINT, port 4318)"


def wanted(signal: str, environ: Mapping[str, str]) -> str | None:
    """The exporter for `signal` ("traces" or "metrics"): "otlp", "console", or None for off.

    Off unless asked for: an exporter variable, or an OTLP endpoint. Raises SettingsError for an exporter or an OTLP
    protocol that is not built in.
    """
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    upper = signal.upper()
    name = f"OTEL_{upper}_EXPORTER"
    exporter = environ.get(name, "").strip().lower()
    if not exporter:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{upper}_ENDPOINT")
        exporter = "otlp" if any(environ.get(variable) for variable in endpoints) else "none"
    if exporter == "none":
        return None
    if exporter not in ("otlp", "console"):
        raise SettingsError(f"{name}={exporter!r} is not an exporter that is built in", _REMEDY)
    protocol = environ.get(f"OTEL_EXPORTER_OTLP_{upper}_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if exporter == "otlp" and protocol not in (None, "", "http/protobuf"):
        raise SettingsError(f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol!r} is not built in", _REMEDY)
    return exporter


def start(process: str, environ: Mapping[str, str] | None = None) -> Callable[[], None]:
    """Installs the SDK for this process if the environment asks for it. Call once, before the rooms are imported.

    Returns what to call at the end: it hands over what is still buffered, bounded by the exporters' own time limits.
    Without a wish for data nothing is imported, no thread is started, and the returned function does nothing.
    """
    environ = os.environ if environ is None else environ
    traces, measures = wanted("traces", environ), wanted("metrics", environ)
    if traces is None and measures is None:
        return lambda: None

    from opentelemetry.sdk.resources import Resource

    resource = Resource.create(
        {
            "service.name": environ.get("OTEL_SERVICE_NAME") or f"post-explorer-{process}",
            "service.namespace": "bluesky-post-explorer",
            "process.pid": os.getpid(),
        }
    )
    closing: list[Callable[[], object]] = []
    if traces is not None:
        closing.append(_start_traces(traces, resource))
    if measures is not None:
        closing.append(_start_metrics(measures, resource))

    def stop() -> None:
        for close in closing:
            close()

    return stop


def _start_traces(exporter: str, resource: object) -> Callable[[], object]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    out: SpanExporter
    if exporter == "console":
        out = ConsoleSpanExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        out = OTLPSpanExporter()
    provider = TracerProvider(resource=resource)  # type: ignore[arg-type]
    provider.add_span_processor(BatchSpanProcessor(out))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def _start_metrics(exporter: str, resource: object) -> Callable[[], object]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import ConsoleMetricExporter, MetricExporter, PeriodicExportingMetricReader

    out: MetricExporter
    if exporter == "console":
        out = ConsoleMetricExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        out = OTLPMetricExporter()
    provider = MeterProvider(metric_readers=[PeriodicExportingMetricReader(out)], resource=resource)  # type: ignore[arg-type]
    metrics.set_meter_provider(provider)
    return provider.shutdown
