"""Reading rows by their places: in the order asked for, and few files at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from api.engine import Engine, Parameters, Session
from api.fetch import fetch
from api.relation import READ_FILES
from tests.api.lake_builder import POST, LakeBuilder, did


def test_rows_of_many_files_come_in_the_order_of_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = LakeBuilder(tmp_path)
    for number in range(60):
        builder.post(did(number % 5), f"text {number}")
        builder.tick(1_500)
    builder.commit()
    paths = [str(builder.root / file.path) for file in builder.manifest.snapshot().files(POST)]
    assert len(paths) > 20
    at_once: list[int] = []
    few = Session.few

    def noting(self: Session, sql: str, parameters: Parameters) -> pa.Table:
        at_once.append(sql.count("read_parquet("))
        return few(self, sql, parameters)

    monkeypatch.setattr(Session, "few", noting)
    engine = Engine([builder.root], threads=1, memory_mb=256, spill_mb=64, spill_dir=tmp_path / "spill")
    with engine.session() as session:
        rows = session.table(f"SELECT text, filename, file_row_number FROM {READ_FILES}", {"files": paths})
        some = rows.take(pa.array(random.Random(1).sample(range(60), 45)))
        found = fetch(session, POST, some.drop_columns(["text"]), ["text"])
    engine.close()
    builder.close()
    assert found["text"].to_pylist() == some["text"].to_pylist()
    # What a statement read of all its files stays in memory to its end.
    assert sum(at_once) > 20
    assert max(at_once) <= 8
