"""The commit steps that each kind of work passes, in order; tests/lake/test_crash_points.py holds that none is left out."""

from __future__ import annotations

from typing import Final

from lake.steps import CommitStep

INGEST_STEPS: Final = (
    CommitStep.BATCH_READY,
    CommitStep.FILE_WRITTEN,
    CommitStep.FILE_SYNCED,
    CommitStep.FILE_RENAMED,
    CommitStep.FILES_DURABLE,
    CommitStep.MANIFEST_OPEN,
    CommitStep.MANIFEST_COMMITTED,
)
"""What `lake.commit.commit_batch` passes."""
SWAP_STEPS: Final = (
    CommitStep.FILE_WRITTEN,
    CommitStep.FILE_SYNCED,
    CommitStep.FILE_RENAMED,
    CommitStep.SWAP_FILES_DURABLE,
    CommitStep.MANIFEST_OPEN,
    CommitStep.SWAP_COMMITTED,
    CommitStep.FILE_UNLINKED,
)
"""What merging, erasing and replaying pass, and the unlinking after them."""
