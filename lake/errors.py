"""Errors of the lake: what went wrong, and what the operator or the caller does about it."""

# The names say outcomes, as the field does ("commit refused"); a suffix would only repeat the module's name.
# ruff: noqa: N818

from __future__ import annotations

from schemas.errors import ExplorerError


class LakeError(ExplorerError):
    """Base of every error of this room."""


class CommitRefused(LakeError):
    """The manifest certainly did not apply the commit or swap.

    Raised when an offset or epoch is not what the writer expected (another writer owns the partition now) or when a
    file that a swap would retire is not live any more. The caller drops its batch and reads the offsets again; only
    after this error may it delete the files it wrote.
    """


class CommitOutcomeUnknown(LakeError):
    """The answer to a commit was lost: it may or may not have been applied.

    The caller asks `Manifest.outcome(commit_id)` before anything else and never deletes files.
    """


class ManifestUnavailable(LakeError):
    """The manifest cannot be opened or is locked for longer than the busy timeout; nothing was applied. Retry later."""


class ManifestVersionError(LakeError):
    """The manifest was written by a newer release (or is not a manifest at all); the process has to stop."""


class SnapshotExpired(LakeError):
    """The version asked for needs files that were unlinked already; read a newer version."""


class DiskFull(LakeError):
    """A file could not be written because the volume (or a quota) is full; nothing visible was left behind."""


class ManifestFull(ManifestUnavailable, DiskFull):
    """The volume of the manifest is full; nothing was applied. Waited out like any full volume."""


class LockHeld(LakeError):
    """Another process holds the named lock (for example: maintenance is running elsewhere)."""


class FileDamaged(LakeError):
    """A file that the manifest calls live is missing, torn, or differs from its digest."""


class ForeignTable(LakeError):
    """A table name that the contract in `schemas/` does not know."""
