"""Access to the API: keys, scopes, limits, origins and the audit log. `install` puts it in front of an application.

Its names are loaded when they are first used: every process reads `api.access.config`, and only the API needs the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from api.access.config import AccessSettings
    from api.access.principals import Principal, charge_bytes, principal
    from api.access.scopes import Scope
    from api.access.setup import install

__all__ = ["AccessSettings", "Principal", "Scope", "charge_bytes", "install", "principal"]

_HOMES: Final = {
    "AccessSettings": "config",
    "Principal": "principals",
    "Scope": "scopes",
    "charge_bytes": "principals",
    "install": "setup",
    "principal": "principals",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
