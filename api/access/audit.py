"""The audit log: who did what, one structured line per request, without secrets and without what was searched for.

A query is recorded by the names of its parameters and a keyed digest, so that equal queries can be counted but not read;
the digest's key lives as long as the process.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from typing import Final
from urllib.parse import parse_qsl

from api.access.addresses import coarse
from api.access.config import AccessSettings
from api.access.principals import Principal

LOGGER = logging.getLogger("explorer.audit")
_MAX_NAMES: Final = 50
_MAX_NAME: Final = 40


class Audit:
    """Writes the records; never blocks beyond what the logging set-up does."""

    def __init__(self, settings: AccessSettings) -> None:
        self._settings = settings
        self._key = secrets.token_bytes(32)

    def query(self, query_string: bytes) -> dict[str, object]:
        """What is recorded of a query string."""
        if not query_string:
            return {}
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
        names = sorted({name[:_MAX_NAME] for name, _ in pairs})[:_MAX_NAMES]
        digest = hmac.new(self._key, query_string, hashlib.sha256).hexdigest()[:16]
        found: dict[str, object] = {"parameters": names, "query_digest": digest}
        if self._settings.audit_queries:
            found["query"] = query_string.decode("latin-1")
        return found

    def address(self, address: str) -> str | None:
        """What is recorded of a client's address."""
        if self._settings.audit_addresses == "none":
            return None
        return coarse(address) if self._settings.audit_addresses == "network" else address

    def request(
        self,
        *,
        method: str,
        route: str,
        status: int,
        principal: Principal | None,
        address: str,
        query_string: bytes,
        seconds: float,
        bytes_scanned: int,
        request_id: str | None,
        refusal: str | None,
    ) -> None:
        """One request; `route` is the template of the address, `refusal` the problem that the access layer answered with."""
        record = {
            "method": method,
            "route": route,
            "status": status,
            "key": principal.key_id if principal else None,
            "address": self.address(address),
            "seconds": round(seconds, 4),
            "bytes_scanned": bytes_scanned,
            "request_id": request_id,
            "refusal": refusal,
            **self.query(query_string),
        }
        LOGGER.info("api request", extra={name: value for name, value in record.items() if value is not None})
