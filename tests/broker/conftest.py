"""Fixtures of this folder."""

from tests.support.registry import registry_url

__all__ = ["registry_url"]
