"""The life of a service process: signals, reports, bounded end; real processes where signals matter."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from pipeline import telemetry
from pipeline.errors import SettingsError
from pipeline.logs import JsonFormatter, LogSettings, TextFormatter, configure
from pipeline.runtime import EXIT_DRAIN_TIMED_OUT
from pipeline.status import StatusWriter, read_status

SERVICE = """
    import sys, threading
    from pathlib import Path
    from pipeline.logs import LogSettings
    from pipeline.runtime import run_service
    from schemas.errors import ExplorerError

    class Service:
        def __init__(self, report):
            self.report = report
        def run(self, stop):
            self.report({{"rows": 1}})
            print("ready", flush=True)
            {body}

    run_service("worker", Service, log_settings=LogSettings(format="json"), status_folder=Path(sys.argv[1]),
                drain_seconds={drain})
"""


def start(folder: Path, body: str, drain: float = 120.0) -> subprocess.Popen[str]:
    code = textwrap.dedent(SERVICE).format(body=body, drain=drain)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_service_drain(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "stop.wait(); self.report({'rows': 2})")
    process.send_signal(number)
    code, errors = end(process)
    assert code == 0, errors
    report = read_status(tmp_path, "worker")
    assert report is not None
    assert (report["state"], report["rows"], report["pid"]) == ("stopped", 2, process.pid)
    assert [json.loads(line)["message"] for line in errors.splitlines()] == ["started", "stopped"]


def test_a_drain_has_a_limit(tmp_path: Path) -> None:
    process = start(tmp_path, "threading.Event().wait()", drain=0.5)
    process.terminate()
    code, errors = end(process)
    assert code == EXIT_DRAIN_TIMED_OUT
    assert "did not drain within 0.5 s" in errors


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "stop.wait(); print('draining', flush=True); threading.Event().wait()")
    process.terminate()
    assert process.stdout is not None
    assert process.stdout.readline() == "draining\n"
    process.terminate()
    assert end(process)[0] == 128 + signal.SIGTERM


def test_a_fatal_error_is_reported_with_its_remedy(tmp_path: Path) -> None:
    process = start(tmp_path, "raise ExplorerError('the cursor is unreadable', 'set it')")
    code, _ = end(process)
    assert code != 0
    report = read_status(tmp_path, "worker")
    assert report is not None
    assert (report["state"], report["error"], report["remedy"]) == ("failed", "the cursor is unreadable", "set it")


def test_reports_are_whole_at_any_time(tmp_path: Path) -> None:
    writer = StatusWriter(tmp_path, "worker", min_interval=0.0)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            writer.report({"text": "x" * 5000})

    thread = threading.Thread(target=write)
    thread.start()
    deadline = time.monotonic() + 0.3
    try:
        while time.monotonic() < deadline:
            assert read_status(tmp_path, "worker") is not None
    finally:
        stop.set()
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["worker.json"]


def test_no_report_or_half_a_report_is_no_report(tmp_path: Path) -> None:
    assert read_status(tmp_path, "worker") is None
    (tmp_path / "worker.json").write_text('{"rows":')
    assert read_status(tmp_path, "worker") is None


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "explorer.test", "levelname": "INFO", "msg": "took %d", "args": (3,)})
    for name, value in extra.items():
        setattr(made, name, value)
    return made


def test_json_log_lines_carry_facts_and_never_break() -> None:
    line = json.loads(JsonFormatter("writer").format(record(rows=7, path=Path("a/b"), text="two\nlines")))
    assert (line["process"], line["message"], line["rows"], line["path"]) == ("writer", "took 3", 7, "a/b")
    assert line["text"] == "two\nlines"
    assert "\n" not in JsonFormatter("writer").format(record(text="two\nlines"))


def test_json_log_lines_name_the_span() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider()
    with provider.get_tracer("test").start_as_current_span("batch") as span:
        line = json.loads(JsonFormatter("writer").format(record()))
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    provider.shutdown()


def test_text_log_lines_are_for_people() -> None:
    assert TextFormatter("writer").format(record(rows=7)).endswith("INFO    writer took 3 rows=7")


def test_log_files_are_rotated(tmp_path: Path) -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)
    try:
        configure("writer", LogSettings(file=tmp_path / "logs" / "writer.log", file_max_bytes=10_000, file_backups=2))
        for number in range(1000):
            logging.getLogger("explorer.test").info("line %d", number)
        assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == [
            "writer.log",
            "writer.log.1",
            "writer.log.2",
        ]
    finally:
        for handler in list(root.handlers):
            root.removeHandler(handler)
            handler.close()
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(level)


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, None, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, "otlp", "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://localhost:4318"}, "otlp", None),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console", None),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}, None, "otlp"),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "console"}, None, None),
    ],
)
def test_telemetry_follows_the_standard_variables(
    environ: dict[str, str], traces: str | None, metrics: str | None
) -> None:
    assert (telemetry.wanted("traces", environ), telemetry.wanted("metrics", environ)) == (traces, metrics)


def test_telemetry_that_is_not_built_in_is_refused() -> None:
    with pytest.raises(SettingsError, match="zipkin"):
        telemetry.wanted("traces", {"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(SettingsError, match="grpc"):
        telemetry.wanted("metrics", {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


def test_telemetry_is_free_when_off() -> None:
    code = "import sys; from pipeline import telemetry; telemetry.start('x', {})(); sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_spans_reach_the_exporter() -> None:
    code = """
        from pipeline import telemetry
        from opentelemetry import trace
        stop = telemetry.start("writer", {"OTEL_TRACES_EXPORTER": "console"})
        with trace.get_tracer("explorer.test").start_as_current_span("lake.commit"):
            pass
        stop()
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environ, capture_output=True, text=True, check=True
    )
    span = json.loads(done.stdout)
    assert span["name"] == "lake.commit"
    assert span["resource"]["attributes"]["service.name"] == "post-explorer-writer"
