"""Structured logs of every process: one line an event, as text for people or as JSON for machines.

The rooms log with `logging.getLogger("explorer.<room>")`, a fixed message and facts in `extra`; the form of a line is
decided here alone.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from opentelemetry import trace
from pydantic import BaseModel, ConfigDict, Field

# What the standard library puts on every record; everything else came in by `extra` (uvicorn adds a coloured copy of its message).
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class LogSettings(BaseModel):
    """Where log lines go and what they look like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe level that is logged")
    format: Literal["text", "json"] = Field("text", description="one line of text, or one JSON object a line")
    file: Path | None = Field(None, description="log to this file, rotated, instead of standard error")
    file_max_bytes: int = Field(10_000_000, ge=10_000, description="size at which a log file is rotated")
    file_backups: int = Field(3, ge=1, le=100, description="rotated log files that are kept")


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD and not name.startswith("_")}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, process, logger, message, the extra facts, trace and span id if any."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "process": self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = f"{context.trace_id:032x}"
            line["span_id"] = f"{context.span_id:016x}"
        for name, value in _extra(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """`time LEVEL process message name=value …`, the exception below it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {name}={value}" for name, value in _extra(record).items())
        line = f"{_time(record)} {record.levelname:<7} {self._process} {record.getMessage()}{facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(process: str, settings: LogSettings) -> None:
    """Sends the logs of this process where `settings` say. Called once, before the service starts."""
    handler: logging.Handler
    if settings.file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        settings.file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            settings.file, maxBytes=settings.file_max_bytes, backupCount=settings.file_backups, encoding="utf-8"
        )
    handler.setFormatter(JsonFormatter(process) if settings.format == "json" else TextFormatter(process))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(settings.level)
    # Libraries speak up only when something is wrong: their INFO lines are one per request.
    for library in ("httpx", "httpcore", "websockets", "uvicorn.access", "urllib3", "opentelemetry"):
        logging.getLogger(library).setLevel(logging.WARNING)
