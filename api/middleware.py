"""ASGI layers around the application: request ids, size caps, security headers, counters and one span per request."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from opentelemetry import metrics, propagate, trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.config import ApiSettings
from api.errors import ApiError, Problem, problem_response
from api.labels.config import body_limit

LOGGER = logging.getLogger("explorer.api")
_TRACER = trace.get_tracer("explorer.api")
_METER = metrics.get_meter("explorer.api")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
}


@dataclass
class RequestCounts:
    """What the process reports about itself."""

    requests: int = 0
    active: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)


class RequestLayer:
    """The outermost layer: every answer, also an error, gets an id, security headers, a span and is counted."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, counts: RequestCounts) -> None:
        self._app = app
        self._settings = settings
        self._counts = counts
        self._duration = _METER.create_histogram("explorer.api.request.duration", unit="s")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope["explorer.request_id"] = request_id
        started = time.monotonic()
        status: int | None = None

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(raw=message["headers"])
                out["X-Request-Id"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    if name not in out:
                        out[name] = value
            await send(message)

        self._counts.requests += 1
        self._counts.active += 1
        context = propagate.extract(dict(headers.items()))
        with _TRACER.start_as_current_span("api.request", context, trace.SpanKind.SERVER) as span:
            try:
                await self._guarded(scope, receive, send_with_headers, headers)
            except Exception:
                # Starlette raises again what its handlers answered and logged; a client whose answer is complete must
                # not find its connection closed.
                if status is None:
                    raise
            finally:
                seconds = time.monotonic() - started
                route = getattr(scope.get("route"), "path", "unmatched")
                self._counts.active -= 1
                self._counts.seconds += seconds
                status = 500 if status is None else status
                self._counts.statuses[f"{status // 100}xx"] += 1
                span.set_attributes(
                    {"http.request.method": scope["method"], "http.route": route, "http.response.status_code": status}
                )
                self._duration.record(seconds, {"http.route": route, "http.response.status_code": status})
                # The query string stays out: search terms are personal data of researchers.
                # One line per request at info level is the access layer's audit log.
                LOGGER.debug(
                    "request",
                    extra={
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 4),
                        "request_id": request_id,
                        "key": scope.get("explorer.key_id"),
                    },
                )

    async def _guarded(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        limit = self._body_limit(scope)
        length = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        refusal: ApiError | None = None
        if length > self._settings.url_bytes:
            refusal = ApiError(
                Problem.TOO_LARGE,
                f"the address has {length} bytes: {self._settings.url_bytes} are allowed; split long lists",
            )
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > limit:
            refusal = ApiError(Problem.TOO_LARGE, f"the body may have {limit} bytes: send less at once")
        if headers.get("content-encoding", "identity").lower() != "identity":
            refusal = ApiError(
                Problem.UNSUPPORTED_MEDIA_TYPE, "compressed request bodies are not read: send it uncompressed"
            )
        if refusal is not None:
            await problem_response(Request(scope), refusal)(scope, receive, send)
            return
        received = 0

        async def capped_receive() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise HTTPException(413, f"the body may have {limit} bytes: send less at once")
            return message

        await self._app(scope, capped_receive, send)

    def _body_limit(self, scope: Scope) -> int:
        upload = body_limit(scope["method"], scope["path"], self._settings.labels)
        return self._settings.body_bytes if upload is None else upload
