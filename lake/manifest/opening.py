"""What opening either manifest takes: connections shared by threads, and agreement on the version of its schema."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from lake.errors import ManifestUnavailable, ManifestVersionError
from lake.manifest.schema import SCHEMA_VERSION
from lake.steps import Hook, no_hook


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """Bounds of a manifest connection. busy_timeout_s: longest wait for another transaction; hook: for fault tests."""

    busy_timeout_s: float = 10.0
    create: bool = False
    read_only: bool = False
    hook: Hook = no_hook


class Connection(Protocol):
    """What the pool asks of a database's connection."""

    def close(self) -> None:
        """Frees it; may be called twice."""


C = TypeVar("C", bound=Connection)


class ConnectionPool(Generic[C]):
    """As many connections as were ever used at once; each is one thread's while it is leased."""

    def __init__(self, url: str, connect: Callable[[], C]) -> None:
        self._url = url
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[C] = []
        self._leased: set[int] = set()
        self._closed = False

    @contextmanager
    def lease(self) -> Generator[C]:
        """A connection for the length of the block; one that broke is to be closed with `discard` and not used again."""
        with self._lock:
            if self._closed:
                raise ManifestUnavailable(f"The manifest {self._url} was closed.")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
        with self._lock:
            self._leased.add(id(connection))
        try:
            yield connection
        finally:
            with self._lock:
                kept = id(connection) in self._leased and not self._closed
                self._leased.discard(id(connection))
                if kept:
                    self._idle.append(connection)
            if not kept:
                connection.close()

    def discard(self, connection: C) -> None:
        """Closes a connection that broke; the next lease opens another."""
        with self._lock:
            self._leased.discard(id(connection))
        with suppress(Exception):
            connection.close()

    def close(self) -> None:
        """Closes idle connections at once and leased ones when they come back; every later lease fails."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def has_to_migrate(url: str, found: int, options: ManifestOptions) -> bool:
    """Whether the schema of version `found` (0 = no tables yet) is to be brought to this release's.

    Raises ManifestVersionError if it is newer, or older and opened for reading only.
    """
    if found > SCHEMA_VERSION:
        raise ManifestVersionError(
            f"The manifest {url} has version {found}; this release knows {SCHEMA_VERSION}.",
            "Use the release that wrote it, or a newer one; manifests are never migrated backwards.",
        )
    if found == SCHEMA_VERSION:
        return False
    if options.read_only:
        raise ManifestVersionError(
            f"The manifest {url} has version {found}, this release needs {SCHEMA_VERSION}.",
            "Start the writer or `post-explorer maintain` once: they migrate it.",
        )
    return True


def no_manifest(url: str) -> ManifestUnavailable:
    """The error for a place where there is none and none is to be made."""
    return ManifestUnavailable(
        f"No manifest at {url}.", "Start the writer once (it creates the lake), or correct EXPLORER_MANIFEST."
    )
