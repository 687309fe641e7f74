"""Giving memory back after a large batch or merge: the allocators keep what they were once given, and a catch-up or an hour
of a million rows would stay on the books of a process that needs a tenth of it at live rate."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back() -> None:
    """Return free heap pages to the system. Takes some milliseconds; call between batches, not within. Linux only in part."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc; other C libraries decide for themselves
        trim(0)
