"""The Python client against the real service."""

from __future__ import annotations

import sys
import typing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from post_explorer_client import ConnectionFailed, Explorer, InvalidRequest, NotAllowed, NotFound, RateLimited, Retry
from post_explorer_client.parameters import (
    AggregateQuery,
    CountsQuery,
    EdgesQuery,
    Filters,
    RecordsQuery,
    SampleQuery,
    SearchQuery,
    TrendsQuery,
    encode,
)

from tests.api.lake_builder import LakeBuilder, did
from tests.clients.conftest import MakeExplorer

GONE = {"post 3", "post 30", "post 59"}
EXPECTED = [text for number in range(59, -1, -1) if (text := f"post {number}") not in GONE]


def test_a_search_iterates_every_page(explorer: Explorer) -> None:
    search = explorer.search(page_size=10, fields=["uri", "text"], total="exact")
    assert [post["text"] for post in search] == EXPECTED
    assert search.requests == 6
    assert search.total is not None
    assert (search.total.count, search.total.relation) == (57, "exact")
    assert search.provenance is not None
    assert search.provenance.snapshot >= 1


def test_a_search_stops_where_it_is_told(explorer: Explorer) -> None:
    search = explorer.search(max_rows=12, page_size=5, sort="oldest")
    assert len(search.all()) == 12
    assert search.requests == 3
    assert explorer.search(max_rows=0).all() == []


def test_filters_are_sent_as_they_are_meant(explorer: Explorer) -> None:
    found = explorer.search(
        author=[did(0), did(1)],
        lang="en",
        start=datetime(2026, 3, 1, 10, tzinfo=UTC),
        end=date(2026, 3, 3),
        reply=False,
        exact=True,
        text='"post 1" OR post',
    ).all()
    assert {post["did"] for post in found} == {did(0), did(1)}
    assert all(post["langs"] == ["en"] for post in found)


def test_a_sample_is_drawn_again_by_its_seed(explorer: Explorer) -> None:
    first = explorer.sample(5, seed="a", fields="uri")
    assert len(first) == 5
    assert list(first) == list(explorer.sample(5, seed="a", fields="uri"))


def test_counts_and_groups(explorer: Explorer) -> None:
    counts = explorer.counts(interval="hour", authors=True, share=True)
    assert sum(row["count"] for row in counts) == 57
    assert counts.body["total_authors"] == 5
    groups = explorer.aggregate("lang")
    assert {row["lang"]: row["count"] for row in groups} == {"de": 29, "en": 28}
    assert groups.provenance.snapshot == counts.provenance.snapshot
    assert explorer.aggregate(["lang", "author"], limit=3).body["truncated"]


def test_tables_hold_the_rows_with_typed_times(explorer: Explorer) -> None:
    frame = explorer.search(fields=["uri", "time", "text", "langs"]).to_polars()
    assert frame.height == 57
    assert frame.schema["time"] == pl.Datetime("us", "UTC")
    assert frame.schema["langs"] == pl.List(pl.String)
    table = explorer.search(fields=["uri", "time", "text", "langs"]).to_arrow()
    assert table["time"].type == pa.timestamp("us", "UTC")
    assert table["time"].to_pylist() == frame["time"].to_list()
    days = explorer.counts(interval="day")
    assert days.to_arrow()["count"].to_pylist() == days.to_polars()["count"].to_list()
    nothing = explorer.search(text="nowhere")
    assert nothing.to_polars().height == nothing.to_arrow().num_rows == 0


def test_pandas_frames(explorer: Explorer) -> None:
    frame = explorer.search(fields=["time", "text"]).to_pandas()
    assert list(frame["text"]) == EXPECTED
    assert str(frame["time"].dt.tz) == "UTC"


def test_a_refusal_is_the_services_own_text(explorer: Explorer) -> None:
    with pytest.raises(InvalidRequest, match="start: must be earlier than end") as caught:
        explorer.search(start="2026-03-02", end="2026-03-01").all()
    assert (caught.value.status, caught.value.kind) == (422, "invalid-parameter")
    assert caught.value.request_id
    assert caught.value.retry_after is None
    with pytest.raises(InvalidRequest, match="did you mean 'author'") as caught:
        explorer.search(autor=did(1)).all()  # type: ignore[call-arg]
    assert caught.value.errors[0].parameter == "autor"
    with pytest.raises(NotFound, match="no such address"):
        explorer.get("/v1/nothing")
    with pytest.raises(TypeError, match="text: dict cannot be sent"):
        explorer.search(text={}).all()  # type: ignore[typeddict-item]


def test_a_service_that_is_away_is_named() -> None:
    with (
        Explorer("http://127.0.0.1:9", retry=Retry(attempts=2, first_pause=0.001)) as explorer,
        pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9 cannot be reached"),
    ):
        explorer.stats()


def test_a_limit_is_waited_for_or_raised(posts: LakeBuilder, make_explorer: MakeExplorer) -> None:
    explorer = make_explorer(access={"requests_per_minute": 100})
    waits: list[float] = []
    explorer._http._sleep = waits.append
    explorer._http._retry = Retry(attempts=3, seconds=120)

    def ask() -> None:
        for _ in range(120):
            explorer.stats()

    with pytest.raises(RateLimited, match="100 requests a minute") as caught:
        ask()
    assert waits == [waits[0], waits[1]]
    assert min(waits) >= 1
    assert caught.value.retry_after is not None


def test_labels_are_uploaded_used_and_deleted(explorer: Explorer, tmp_path: Path) -> None:
    found = explorer.search(sort="oldest", fields="uri,did").all()
    uploads: dict[str, Any] = {
        "rows": [{"uri": post["uri"], "mood": "sad"} for post in found[:7]],
        "polars": pl.DataFrame({"uri": [post["uri"] for post in found[:7]], "mood": ["sad"] * 7}),
        "arrow": pa.table({"uri": [post["uri"] for post in found[:7]], "mood": ["sad"] * 7}),
        "bytes": ("uri,mood\n" + "".join(f"{post['uri']},sad\n" for post in found[:7])).encode(),
    }
    for suffix in ("csv", "parquet"):
        uploads[suffix] = tmp_path / f"mood.{suffix}"
    uploads["csv"].write_bytes(uploads["bytes"])
    uploads["polars"].write_parquet(uploads["parquet"])
    for name, table in uploads.items():
        made = explorer.labels.upload(name, table, description="how it sounds")
        assert made["versions"][0]["rows"] == 7
        assert sorted(post["uri"] for post in explorer.search(label=f"{name}:sad", fields="uri")) == sorted(
            post["uri"] for post in found[:7]
        )
        assert len(explorer.search(not_label=f"{name}:*").all()) == 50
    assert {item["name"] for item in explorer.labels.list()} == set(uploads)
    assert explorer.labels.get("rows")["description"] == "how it sounds"
    explorer.labels.delete("rows")
    with pytest.raises(NotFound, match="no label table 'rows'"):
        explorer.search(label="rows:sad").all()
    with pytest.raises(InvalidRequest, match="row 3, column 'uri'"):
        explorer.labels.upload("rows", b"uri\n" + found[0]["uri"].encode() + b"\nhttps://example.org\n")


def test_a_key_is_sent_and_asked_for(
    posts: LakeBuilder, make_explorer: MakeExplorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.access import Scope
    from api.access.keys import create_key

    made = create_key(tmp_path / "state" / "keys.sqlite", name="Ada", scopes=frozenset({Scope.READ}), days=1, now=1.9e9)
    without = make_explorer(access={"require_key": True})
    with pytest.raises(NotAllowed, match="needs an API key"):
        without.stats()
    url = str(without._http._client.base_url)
    with Explorer(url, made.token) as explorer:
        assert explorer.stats()["rows"] > 0
        with pytest.raises(NotAllowed, match="`labels`"):
            explorer.labels.upload("x", b"did\ndid:plc:a\n")
    monkeypatch.setenv("POST_EXPLORER_KEY", made.token)
    with Explorer(url) as explorer:
        assert explorer.stats()["rows"] > 0


@pytest.mark.parametrize(
    ("path", "query", "own"),
    [
        ("/v1/search", SearchQuery, {"limit", "cursor", "sample", "seed"}),
        ("/v1/search", SampleQuery, {"limit", "cursor", "sample", "sort", "total"}),
        ("/v1/counts", CountsQuery, set()),
        ("/v1/aggregate", AggregateQuery, {"by"}),
        ("/v1/explain", Filters, {"target", "format"}),
        ("/v1/records", RecordsQuery, {"collection", "limit", "cursor"}),
        ("/v1/graph/edges", EdgesQuery, {"kind", "format"}),
        ("/v1/trends", TrendsQuery, {"by"}),
    ],
)
def test_the_typed_parameters_are_the_services(explorer: Explorer, path: str, query: type, own: set[str]) -> None:
    document = explorer.get("/openapi.json")
    offered = {item["name"] for item in document["paths"][path]["get"]["parameters"]}
    assert set(typing.get_type_hints(query)) == offered - own


def test_posts_threads_records_accounts_and_edges(builder: LakeBuilder, make_explorer: MakeExplorer) -> None:
    first = builder.post(did(1), "first", tags=["rising"])
    builder.tick()
    for number in range(7):
        more = {"reply_parent_uri": first["uri"], "reply_root_uri": first["uri"]}
        builder.post(did(2), f"reply {number}", tags=["rising"], **more)
        builder.tick()
        builder.record("app.bsky.feed.like", did(3), subject_uri=first["uri"])
    builder.identity(did(1), "one.example.org")
    builder.commit()
    explorer = make_explorer()
    assert [post["text"] for post in explorer.thread(first["uri"])] == ["first", *(f"reply {n}" for n in range(7))]
    assert explorer.post(first["uri"])["engagement"]["replies"] == 7
    assert explorer.author("one.example.org")["did"] == did(1)
    records = explorer.records("app.bsky.feed.like", page_size=3)
    assert len(records.all()) == 7
    assert records.requests == 3
    assert explorer.edges("reply", weighted=True)[0]["source"] == did(2)
    assert explorer.trends(min_count=1, window_minutes=60, baseline_minutes=600).provenance.snapshot >= 1
    assert explorer.explain(text="first")["files"] >= 1
    assert explorer.get("/v1/collections")["collections"]


def test_values_become_text() -> None:
    assert encode({"a": None, "b": True, "c": [1, 2], "fields": ["x", "y"], "d": datetime(2026, 1, 2, 3)}) == [  # noqa: DTZ001 - without a zone on purpose
        ("b", "true"),
        ("c", "1"),
        ("c", "2"),
        ("fields", "x,y"),
        ("d", "2026-01-02T03:00:00Z"),
    ]


@pytest.mark.parametrize(
    ("method", "module", "extra"),
    [("to_arrow", "pyarrow", "arrow"), ("to_pandas", "pandas", "pandas"), ("to_polars", "polars", "polars")],
)
def test_a_missing_library_is_named_with_the_way_to_get_it(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch, method: str, module: str, extra: str
) -> None:
    counts = explorer.counts(interval="day", start="2026-03-01", end="2026-03-02")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'bluesky-post-explorer-client\[{extra}\]'"):
        getattr(counts, method)()
