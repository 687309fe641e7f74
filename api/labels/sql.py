"""Label conditions as SQL over the lake's rows: constant text, bound values, files from the catalogue. Pure.

The rows they filter have the alias `r` and the columns did, collection, rkey_tid, rkey_text.
"""
# ruff: noqa: S608 - every piece of text is a constant, a bound value's name, or a stored column's name (v0, v1, …)

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from api.labels.names import Comparison, Operator, ValueKind

_STORED: Final = re.compile(r"v[0-9]{1,3}", re.ASCII)
_ALIAS: Final = re.compile(r"[a-z][a-z0-9_]{0,20}", re.ASCII)


class Binder(Protocol):
    """Keeps a value and gives its placeholder, as `api.sql.Bound` does."""

    def bind(self, value: Any) -> str:
        """The placeholder."""
        ...


@dataclass(frozen=True, slots=True)
class LabelColumn:
    """One column of one version of a table, found in the catalogue; `stored` and `kind` are None for one without values.

    `pinned` is its reference with owner and version, which means the same for ever: for cursors and provenance. `rows` is
    the size of the table.
    """

    pinned: str
    key: str
    file: Path
    stored: str | None
    kind: ValueKind | None
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LabelCondition:
    """A column and the comparisons that all must hold in one of its rows."""

    column: LabelColumn
    comparisons: tuple[Comparison, ...]
    text: str

    @property
    def pinned(self) -> str:
        """The condition as a client may repeat it later and get the same rows."""
        return f"{self.column.pinned}:{self.text}"


@dataclass(frozen=True, slots=True)
class LabelJoin:
    """`sql` goes after the FROM item of the rows; `expression` is the label's value, NULL for rows without one."""

    sql: str
    expression: str


def label_predicates(
    wanted: Sequence[LabelCondition], unwanted: Sequence[LabelCondition], bound: Binder, *, alias: str = "r"
) -> list[str]:
    """Predicates over the rows: of each column one of its wanted conditions holds, and no unwanted one does."""
    columns: dict[LabelColumn, list[LabelCondition]] = {}
    for condition in wanted:
        columns.setdefault(condition.column, []).append(condition)
    found = [_exists(column, conditions, bound, alias) for column, conditions in columns.items()]
    refused: dict[LabelColumn, list[LabelCondition]] = {}
    for condition in unwanted:
        refused.setdefault(condition.column, []).append(condition)
    return [*found, *(f"NOT {_exists(column, conditions, bound, alias)}" for column, conditions in refused.items())]


def label_join(column: LabelColumn, bound: Binder, *, alias: str = "r", name: str = "label") -> LabelJoin:
    """A join that gives rows their label, for grouping and for columns of exports.

    A row with several labels (a table uploaded with multiple=true) comes once per label.
    """
    assert _ALIAS.fullmatch(name)
    stored = _stored(column)
    value = "TRUE AS label_value" if stored is None else f"{stored} AS label_value"
    keys = "did" if column.key == "did" else "did, collection, rkey_tid, rkey_text"
    distinct = f"(SELECT DISTINCT {keys}, {value} FROM {_file(column, bound)})"
    return LabelJoin(f"LEFT JOIN {distinct} AS {name} ON {_same_key(column, name, alias)}", f"{name}.label_value")


def _exists(column: LabelColumn, conditions: Sequence[LabelCondition], bound: Binder, alias: str) -> str:
    tests = [
        " AND ".join(_comparison(column, comparison, bound) for comparison in condition.comparisons)
        for condition in conditions
    ]
    either = " OR ".join(f"({test})" for test in tests)
    return f"EXISTS (SELECT 1 FROM {_file(column, bound)} AS l WHERE {_same_key(column, 'l', alias)} AND ({either}))"


def _comparison(column: LabelColumn, comparison: Comparison, bound: Binder) -> str:
    stored = _stored(column)
    if comparison.operator is Operator.PRESENT:
        return "TRUE" if stored is None else f"l.{stored} IS NOT NULL"
    assert stored is not None
    return f"l.{stored} {comparison.operator.value} {bound.bind(comparison.value)}"


def _same_key(column: LabelColumn, label: str, alias: str) -> str:
    assert _ALIAS.fullmatch(alias)
    if column.key == "did":
        return f"{label}.did = {alias}.did"
    return (
        f"{label}.did = {alias}.did AND {label}.collection = {alias}.collection"
        f" AND {label}.rkey_tid IS NOT DISTINCT FROM {alias}.rkey_tid"
        f" AND {label}.rkey_text IS NOT DISTINCT FROM {alias}.rkey_text"
    )


def _file(column: LabelColumn, bound: Binder) -> str:
    return f"read_parquet({bound.bind([str(column.file)])}, hive_partitioning = false)"


def _stored(column: LabelColumn) -> str | None:
    assert column.stored is None or _STORED.fullmatch(column.stored)
    return column.stored
