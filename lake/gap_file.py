"""Gaps beside the lake, so that a lost manifest does not take them along: `<lake>/.gaps.json`.

The manifest is where gaps are looked up; this copy is what `lake.rebuild` reads. Gaps of the source are in the topic
`bluesky.gap` for ever as well, those that the broker's retention tore are nowhere else.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Final

from lake.errors import LakeError
from lake.manifest import Gap, Manifest
from lake.paths import replace_file
from lake.store import LakeStore

NAME: Final = ".gaps.json"
_FOR_EVER: Final = 1 << 62


def save_gaps(store: LakeStore, manifest: Manifest) -> int:
    """Writes down all gaps of the manifest, durably, if some are new; returns how many there are. Raises OSError."""
    gaps = manifest.gaps(-_FOR_EVER, _FOR_EVER)
    text = json.dumps({"gaps": [asdict(gap) for gap in sorted(gaps, key=lambda gap: gap.id)]}, indent=1) + "\n"
    path = store.root / NAME
    if not gaps or (path.exists() and path.read_text() == text):
        return len(gaps)
    # Writers and maintenance may both be here: the last one wins with all gaps in it.
    replace_file(path, text.encode())
    return len(gaps)


def load_gaps(store: LakeStore) -> list[Gap]:
    """The gaps that were written down; none without the file. Raises LakeError for a damaged one."""
    path: Path = store.root / NAME
    try:
        return [Gap(**gap) for gap in json.loads(path.read_text())["gaps"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise LakeError(
            f"{path} is damaged: {error}.",
            "Restore it from a backup, or remove it: gaps of the source are read again from their topic then, those that the"
            " broker's retention tore are forgotten.",
        ) from error
