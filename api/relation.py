"""The vocabulary of queries: where files are, and a relation with its conditions and bound values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from api.current import CurrentState
from api.sql import Bound, all_of
from lake.bloom import FilterIndex
from lake.manifest import LiveFile

READ_FILES: Final = "read_parquet($files, hive_partitioning = false)"
"""How every statement reads files: an explicit list as bound value, never a pattern or a text from a client."""


@dataclass(frozen=True)
class Lake:
    """Where a query finds files, what has ended, and which files can hold a key."""

    root: Path
    current: CurrentState
    filters: FilterIndex

    def paths(self, files: Sequence[LiveFile]) -> list[str]:
        """The absolute paths of files, for a bound value."""
        return [str(self.root / file.path) for file in files]


@dataclass(frozen=True)
class Source:
    """A relation of rows with alias r: `FROM {relation} WHERE {condition}`, with `bound.values` and `$files`."""

    relation: str
    predicates: tuple[str, ...]
    bound: Bound

    @property
    def condition(self) -> str:
        """The conjunction of all predicates."""
        return all_of(self.predicates)
