"""What a key may do, and what each address of the API needs: pure rules, closed by default."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """One permission of a key."""

    READ = "read"
    """Queries of every kind."""
    EXPORT = "export"
    """Export jobs and their files."""
    LABELS = "labels"
    """Uploading and deleting label tables."""
    ADMIN = "admin"
    """Everything, for the service's operator."""


EVERYTHING: Final = frozenset(Scope)
ANONYMOUS: Final = frozenset({Scope.READ, Scope.EXPORT, Scope.LABELS})
"""What a client without a key may do while none is needed."""

_OPEN: Final = ("/health", "/static", "/problems", "/docs")
_OPEN_EXACTLY: Final = frozenset({"/", "/openapi.json", "/favicon.ico"})
_SAFE: Final = frozenset({"GET", "HEAD"})


def is_below(path: str, prefix: str) -> bool:
    """Whether `path` is `prefix` or under it."""
    return path == prefix or path.startswith(prefix + "/")


def required_scope(method: str, path: str) -> Scope | None:
    """What a request needs; None for addresses that show no data. Whatever is not listed as open needs a key."""
    if path in _OPEN_EXACTLY or any(is_below(path, prefix) for prefix in _OPEN):
        return None
    if is_below(path, "/v1/admin"):
        return Scope.ADMIN
    if is_below(path, "/v1/exports") or path in ("/export", "/v1/export"):
        return Scope.EXPORT
    if is_below(path, "/v1/labels") and method not in _SAFE:
        return Scope.LABELS
    return Scope.READ


def allows(scopes: frozenset[Scope], needed: Scope) -> bool:
    """Whether these permissions cover it; `admin` covers everything."""
    return needed in scopes or Scope.ADMIN in scopes


def is_loopback(host: str) -> bool:
    """Whether a bind address or host name can only be reached from this machine."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
