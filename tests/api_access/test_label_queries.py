"""Label conditions as SQL select what a plain Python filter selects."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.engine import Engine
from api.identifiers import tid_value
from api.labels.checking import check
from api.labels.names import Operator, Reference, ValueKind, parse_condition, parse_reference, split_label
from api.labels.sql import LabelColumn, LabelCondition, label_join, label_predicates
from api.labels.table import Limits, write
from api.sql import Bound, all_of

POST = "app.bsky.feed.post"
RKEYS = ("3l6oveex3ii2l", "3l6oveex3ii22", "self", "zzzzzzzzzzzzz")
DIDS = ("did:plc:aaa", "did:plc:bbb")
ROWS = [(did, rkey) for did in DIDS for rkey in RKEYS]
LIMITS = Limits(rows=1000, columns=10, value_characters=100, expanded_bytes=2**30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    tids = [tid_value(rkey) for _, rkey in ROWS]
    pq.write_table(
        pa.table(
            {
                "did": [did for did, _ in ROWS],
                "collection": [POST] * len(ROWS),
                "rkey_tid": pa.array(tids, pa.int64()),
                "rkey_text": pa.array(
                    [None if t is not None else r for t, (_, r) in zip(tids, ROWS, strict=True)], pa.string()
                ),
                "number": range(len(ROWS)),
            }
        ),
        folder / "posts.parquet",
    )
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine([folder], threads=1, memory_mb=256, spill_mb=0, spill_dir=folder / "spill")
    yield engine
    engine.close()


def store(folder: Path, key: str, values: list[tuple[Any, Any]], kind: ValueKind) -> LabelColumn:
    """A label table with one column, as an upload stores it."""
    types = {ValueKind.TEXT: pa.string(), ValueKind.INTEGER: pa.int64(), ValueKind.NUMBER: pa.float64()}
    rows = pa.table({key: [item[0] for item in values], "x": pa.array([item[1] for item in values], types[kind])})
    path = folder / f"label-{key}.parquet"
    write(check(rows, first_row=2, limits=LIMITS, multiple=True), path)
    return LabelColumn("me/x.x@1", key, path, "v0", kind, len(values), "")


def selected(engine: Engine, folder: Path, predicates: list[str], bound: Bound) -> set[int]:
    posts = str(folder / "posts.parquet")
    with engine.session() as session:
        found = session.rows(
            f"SELECT number FROM read_parquet({bound.bind([posts])}) AS r WHERE {all_of(predicates)}", bound.values
        )
    return {row[0] for row in found}


def uri(row: tuple[str, str]) -> str:
    return f"at://{row[0]}/{POST}/{row[1]}"


texts = st.sampled_from(["a", "b", "'; DROP TABLE x; --", None])
numbers = st.sampled_from([-1, 0, 1, 2, None])


@given(
    key=st.sampled_from(["uri", "did"]),
    labels=st.lists(st.tuples(st.sampled_from(ROWS), texts), min_size=1, max_size=12),
    wanted=st.lists(st.sampled_from(["a", "b", "*", "=*", "'; DROP TABLE x; --"]), max_size=3),
    unwanted=st.lists(st.sampled_from(["a", "b", "*"]), max_size=2),
)
def test_text_labels(
    engine: Engine, folder: Path, key: str, labels: list[tuple[Any, Any]], wanted: list[str], unwanted: list[str]
) -> None:
    column = store(
        folder, key, [(uri(row) if key == "uri" else row[0], value) for row, value in labels], ValueKind.TEXT
    )

    def holds(row: tuple[str, str], condition: str) -> bool:
        values = [value for at, value in labels if (at == row if key == "uri" else at[0] == row[0])]
        if condition == "*":
            return any(value is not None for value in values)
        return condition.removeprefix("=") in values

    bound = Bound()
    made = [
        [LabelCondition(column, parse_condition(text, column.kind), text) for text in part]
        for part in (wanted, unwanted)
    ]
    found = selected(engine, folder, label_predicates(made[0], made[1], bound), bound)
    expected = {
        number
        for number, row in enumerate(ROWS)
        if (not wanted or any(holds(row, text) for text in wanted)) and not any(holds(row, text) for text in unwanted)
    }
    assert found == expected


@given(
    labels=st.lists(st.tuples(st.sampled_from(ROWS), numbers), min_size=1, max_size=12),
    condition=st.sampled_from(["0", ">0", ">=1", "<1", "<= 0", "-1..1", ">0.5", "!=1", "0.5..1.5", "*"]),
    kind=st.sampled_from([ValueKind.INTEGER, ValueKind.NUMBER]),
)
def test_number_labels(
    engine: Engine, folder: Path, labels: list[tuple[Any, Any]], condition: str, kind: ValueKind
) -> None:
    column = store(folder, "uri", [(uri(row), value) for row, value in labels], kind)
    comparisons = parse_condition(condition, kind)
    operators = {">": "__gt__", ">=": "__ge__", "<": "__lt__", "<=": "__le__", "=": "__eq__", "!=": "__ne__"}

    def holds(value: float | None) -> bool:
        if value is None:
            return False
        return all(
            item.operator is Operator.PRESENT or getattr(float(value), operators[item.operator])(float(item.value or 0))
            for item in comparisons
        )

    bound = Bound()
    found = selected(
        engine, folder, label_predicates([LabelCondition(column, comparisons, condition)], [], bound), bound
    )
    assert found == {
        number for number, row in enumerate(ROWS) if any(at == row and holds(value) for at, value in labels)
    }


@given(
    key=st.sampled_from(["uri", "did"]),
    labels=st.lists(st.tuples(st.sampled_from(ROWS), texts), min_size=1, max_size=12),
)
def test_grouping_counts_every_row_once_per_label(
    engine: Engine, folder: Path, key: str, labels: list[tuple[Any, Any]]
) -> None:
    column = store(
        folder, key, [(uri(row) if key == "uri" else row[0], value) for row, value in labels], ValueKind.TEXT
    )
    bound = Bound()
    join = label_join(column, bound)
    posts = bound.bind([str(folder / "posts.parquet")])
    with engine.session() as session:
        rows = session.rows(
            f"SELECT {join.expression}, count(*) FROM read_parquet({posts}) AS r {join.sql} GROUP BY ALL", bound.values
        )
    expected: dict[Any, int] = {}
    for row in ROWS:
        values = {value for at, value in labels if (at == row if key == "uri" else at[0] == row[0])}
        for value in values or {None}:
            expected[value] = expected.get(value, 0) + 1
    assert dict(rows) == expected


@pytest.mark.parametrize(
    ("text", "reference", "condition"),
    [
        ("mood:angry", Reference("mood"), "angry"),
        ("mood:a:b", Reference("mood"), "a:b"),
        ("k3f/mood.score@3:>=0.5", Reference("mood", "k3f", "score", 3), ">=0.5"),
    ],
)
def test_how_labels_are_written(text: str, reference: Reference, condition: str) -> None:
    assert split_label(text) == (reference, condition)


@pytest.mark.parametrize(
    "text", ["", "mood", "mood:", ":x", "Mood:x", "a b:x", "mood@0:x", "../x:y", "mood@x:y", "a/b/c:x"]
)
def test_what_is_no_label_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(ValueError, match="write name:value"):
        split_label(text)


@given(st.text(max_size=60))
def test_any_text_is_a_label_or_a_value_error(text: str) -> None:
    for read in (split_label, parse_reference):
        with contextlib.suppress(ValueError):
            read(text)
    for kind in (*ValueKind, None):
        with contextlib.suppress(ValueError):
            parse_condition(text, kind)
