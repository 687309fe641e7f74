"""Putting the access layer in front of an application."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware import Middleware

from api.access.config import AccessSettings
from api.access.keys import KeyStore, keys_file
from api.access.layer import AccessLayer, keys_required

LOGGER = logging.getLogger("explorer.api")


def install(
    app: FastAPI,
    settings: AccessSettings,
    *,
    host: str,
    state_dir: Path,
    wall: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Put the access layer around `app`, inside the layers that were added so far.

    `host` is the address the service binds to. Raises KeyStoreError when the key file exists and cannot be used.
    """
    store = KeyStore(keys_file(settings, state_dir))
    if keys_required(settings, host) and not any(key.valid(wall()) for key in store.all()):
        LOGGER.warning(
            "every request needs an API key and there is none yet: make one with `post-explorer keys create`",
            extra={"host": host, "keys_file": str(store.path)},
        )
    # Appended, because add_middleware would put it outside the layer that gives refusals their id and security headers.
    app.user_middleware.append(
        Middleware(AccessLayer, settings=settings, host=host, state_dir=state_dir, wall=wall, clock=clock)
    )
