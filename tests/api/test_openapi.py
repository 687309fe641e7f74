"""The service's description of itself: examples everywhere, and what every answer about data has to name."""

from __future__ import annotations

import csv
import io
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tests.api.lake_builder import LakeBuilder, did

WITHOUT_DATA = {
    *("live", "ready", "create_export", "exports", "export", "delete_export", "export_data", "export_provenance"),
    *("list_labels", "get_label", "put_label", "delete_label", "delete_label_version", "lab_export"),
}


def operations(client: httpx.Client) -> dict[str, dict[str, Any]]:
    paths = client.get("/openapi.json").json()["paths"]
    return {item["operationId"]: item for methods in paths.values() for item in methods.values()}


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def has_example(node: Any) -> bool:
    if isinstance(node, dict):
        return bool(node.get("example") or node.get("examples")) or any(has_example(value) for value in node.values())
    return isinstance(node, list) and any(has_example(value) for value in node)


def test_every_operation_has_an_example(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    lacking = []
    for name, item in operations(client).items():
        bodies = [
            resolved(document, content["schema"])
            for content in item.get("requestBody", {}).get("content", {}).values()
            if "schema" in content
        ]
        asked = [*item.get("parameters", []), *bodies, *item.get("requestBody", {}).get("content", {}).values()]
        if asked and not has_example(asked):
            lacking.append(name)
    assert lacking == []


def test_every_answer_about_data_names_snapshot_and_coverage(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    found = operations(client)
    assert set(found) >= WITHOUT_DATA
    for name, item in found.items():
        answer = resolved(
            document, item["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
        )
        if name not in WITHOUT_DATA:
            assert {"snapshot", "coverage"} <= set(answer["properties"]), name


@pytest.mark.parametrize(
    ("path", "columns"),
    [
        ("/v1/counts?interval=hour&share=true", ["start", "count", "all_posts", "share"]),
        ("/v1/aggregate?by=lang&by=hour&authors=true", ["lang", "hour", "count", "authors"]),
    ],
)
def test_counts_and_groups_come_as_files(
    builder: LakeBuilder, client: httpx.Client, path: str, columns: list[str]
) -> None:
    for number in range(6):
        builder.post(did(number % 2), "x", langs=["en" if number % 2 else "pt"])
        builder.tick(1800)
    version = builder.commit()
    rows = client.get(path).json()
    rows = rows.get("counts") or rows["groups"]
    text = client.get(path, headers={"Accept": "text/csv"})
    assert text.headers["x-snapshot"] == str(version)
    read = list(csv.DictReader(io.StringIO(text.text)))
    assert list(read[0]) == columns
    assert [int(row["count"]) for row in read] == [row["count"] for row in rows]
    answer = client.get(path, headers={"Accept": "application/vnd.apache.parquet"})
    assert pq.read_table(io.BytesIO(answer.content)).to_pylist() == rows
    assert client.get(path, headers={"Accept": "application/x-ndjson"}).text.count("\n") == len(rows)
    assert client.get(path, headers={"Accept": "image/png"}).status_code == 406
