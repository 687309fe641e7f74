"""Fixtures of the whole service for tests of its security."""

from __future__ import annotations

from tests.api.conftest import builder, client, make_client

__all__ = ["builder", "client", "make_client"]
