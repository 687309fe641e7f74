"""The manifest: the one authority on what is in the lake.

A row is visible if and only if the manifest names its file as live; the transaction that added the file also advanced
the offsets its rows came from. Two implementations (`sqlite`, `postgres`) stand behind the `Manifest` protocol and pass one
contract suite; what both say in SQL is in `sql`, `changes`, `snapshot` and `schema`.
"""

from __future__ import annotations

from lake.manifest.facts import (
    HOUR_US,
    Advance,
    Commit,
    FileKind,
    Gap,
    HourCount,
    HourReconciliation,
    LiveFile,
    NewFile,
    Position,
    RetiredFile,
    SmallFiles,
    Span,
    Swap,
    TableTotals,
    TopicPartition,
    VersionInfo,
    coalesce_spans,
    hour_of,
)
from lake.manifest.opening import ManifestOptions
from lake.manifest.protocol import Manifest, Snapshot
from lake.steps import Hook, no_hook

__all__ = [
    "HOUR_US",
    "Advance",
    "Commit",
    "FileKind",
    "Gap",
    "HourCount",
    "HourReconciliation",
    "LiveFile",
    "Manifest",
    "NewFile",
    "Position",
    "RetiredFile",
    "SmallFiles",
    "Snapshot",
    "Span",
    "Swap",
    "TableTotals",
    "TopicPartition",
    "VersionInfo",
    "coalesce_spans",
    "hour_of",
    "open_manifest",
]


def open_manifest(
    url_or_path: str,
    *,
    create: bool = False,
    read_only: bool = False,
    busy_timeout_s: float = 10.0,
    hook: Hook = no_hook,
) -> Manifest:
    """Opens the manifest at a SQLite path or a `postgresql://` URL.

    create: make it if it is not there (otherwise ManifestUnavailable says how). read_only: every change is refused by
    the database itself. hook: for fault tests. Raises ManifestVersionError for a manifest of a newer release.
    """
    options = ManifestOptions(busy_timeout_s, create, read_only, hook)
    if url_or_path.startswith(("postgresql://", "postgres://")):
        from lake.manifest.postgres import PostgresManifest

        return PostgresManifest(url_or_path, options)
    from lake.manifest.sqlite import SqliteManifest

    return SqliteManifest(url_or_path, options)
