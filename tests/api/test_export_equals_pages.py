"""An export is all pages of the search with the same filters, one behind the other: the same rows, values and order."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api.times import format_time
from lake import account_index, engagement_bounds, named_keys, text_index
from tests.api.conftest import MakeClient
from tests.api.lake_builder import POST, LakeBuilder
from tests.api.test_exports import finished, rows_of
from tests.api.test_filters_property import filter_strategy, random_lake, render

FIELDS = [
    *(
        "uri",
        "cid",
        "did",
        "time",
        "created_at",
        "text",
        "langs",
        "reply_parent_uri",
        "media_kind",
        "media_count",
        "links",
    ),
    *("hashtags", "operation", "resync", "likes", "replies", "handle"),
]


def pages(client: httpx.Client, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Every row of a search by following its cursor."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        more = {} if cursor is None else {"cursor": cursor}
        answer = client.get("/v1/search", params=parameters | more)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found += body["results"]
        cursor = body["meta"]["next_cursor"]
        if cursor is None:
            return found
        assert 0 < len(body["results"]) <= parameters["limit"]


def as_json(value: Any) -> Any:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if isinstance(value, datetime) else value


def from_csv(text: str, like: Any) -> Any:
    """The text of a field of CSV as a value of the kind that a search gave there."""
    if text == "" and not isinstance(like, str):
        return None
    return text if isinstance(like, str) else json.loads(text)


@pytest.fixture(params=["fresh", "kept up"])
def filled(request: pytest.FixtureRequest, builder: LakeBuilder) -> LakeBuilder:
    random_lake(builder, 11)
    if request.param == "kept up":
        builder.maintain()
        snapshot = builder.manifest.snapshot()
        for index in (text_index, account_index, named_keys):
            for file in index.missing(builder.root, snapshot):
                index.build(builder.store, file)
        engagement_bounds.update(builder.store, snapshot, lambda: True)
    return builder


def test_an_export_is_all_pages_in_every_format(filled: LakeBuilder, make_client: MakeClient) -> None:
    client = make_client(exports_per_owner=1000)
    uris = [row["uri"] for row in filled.events if row.get("uri", "").split("/")[3:4] == [POST]]
    compared = []

    every = filter_strategy(uris)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @example(chosen={}, fields=FIELDS, limit=7, newest=True, compression="none")
    # Absent in most rows: lines that a reader of CSV must not take for empty ones.
    @example(chosen={}, fields=["media_kind"], limit=50, newest=False, compression="none")
    @example(chosen={}, fields=["likes"], limit=50, newest=False, compression="gzip")
    @given(
        chosen=st.one_of(every.map(lambda filters: dict(list(filters.items())[:1])), every),
        fields=st.lists(st.sampled_from(FIELDS), min_size=1, max_size=6, unique=True),
        limit=st.sampled_from([1, 7, 50, 1000]),
        newest=st.booleans(),
        compression=st.sampled_from(["none", "zstd", "gzip"]),
    )
    def check(chosen: dict[str, Any], fields: list[str], limit: int, newest: bool, compression: str) -> None:
        filters = {name: value for name, value in chosen.items() if name != "words"}
        if "words" in chosen:
            filters["text"] = render(chosen["words"])
        if "start" in filters:
            filters["start"] = format_time(filters["start"])
        order = "newest" if newest else "oldest"
        found = pages(
            client, {**filters, "fields": ",".join(fields), "sort": order, "limit": max(limit, len(uris) // 20)}
        )
        if newest:
            found.reverse()
        for form in ("csv", "ndjson", "parquet"):
            info = finished(client, {**filters, "fields": fields, "format": form, "compression": compression})
            assert (info["state"], info["rows"]) == ("done", len(found)), info
            rows = rows_of(info, client.get(info["download"]).content)
            if form == "parquet":
                rows = [{name: as_json(value) for name, value in row.items()} for row in rows]
            if form == "csv":
                rows = [
                    {name: from_csv(text, like[name]) for name, text in row.items()}
                    for row, like in zip(rows, found, strict=True)
                ]
            assert rows == found
        compared.append(len(found))

    check()
    assert max(compared) > 10, "all posts that stand"
