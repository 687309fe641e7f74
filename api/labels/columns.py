"""A value column of a label table, as the checked upload, the worker's answer and the catalogue hold it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from api.labels.names import ValueKind


@dataclass(frozen=True, slots=True)
class Column:
    """A value column: its public name, what it holds, its name in the stored file, and its values in short."""

    name: str
    kind: ValueKind
    stored: str
    summary: dict[str, Any]


def columns_from(items: Iterable[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Columns from their JSON objects; raises KeyError or ValueError for an object that is none."""
    return tuple(Column(item["name"], ValueKind(item["kind"]), item["stored"], item["summary"]) for item in items)
