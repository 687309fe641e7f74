"""A deleted post and a deleted account are in no answer and no file from the moment the deletion is committed.

Every operation of the service's own description is asked before and after: a route that is added without a line here fails.
Everything that has to be forgotten holds the word "zebra", so that one search through the bytes of an answer finds it.
"""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow.parquet as pq
import pytest
import zstandard

import api.exports.work
from tests.api.conftest import MakeClient
from tests.api.lake_builder import POST, LakeBuilder, did

LIKE, REPOST = "app.bsky.feed.like", "app.bsky.feed.repost"
FOLLOW, PROFILE = "app.bsky.graph.follow", "app.bsky.actor.profile"
WORD = "zebra"
ANN, BOB, EVE = did(1), did(2), did(3)
"""Ann deletes a post, Bob his account; Eve stays as she is."""


@dataclass
class World:
    """What is in the lake: the uris that the requests need."""

    root: str = ""
    deleted: str = ""
    lost: str = ""
    version: int = 0
    exports: dict[str, str] = field(default_factory=dict)


def write_posts(builder: LakeBuilder, author: str, root: str) -> tuple[str, str]:
    """A post that is full of the word in everything a post can hold, and a quote of the root; their uris."""
    embed = {
        "$type": "app.bsky.embed.images",
        "images": [{"alt": "zebra alt"}],
    }
    facets = [
        {
            "index": {"byteStart": 0, "byteEnd": 5},
            "features": [
                {"$type": "app.bsky.richtext.facet#link", "uri": "https://zebra.example/page"},
                {"$type": "app.bsky.richtext.facet#tag", "tag": "zebratag"},
                {"$type": "app.bsky.richtext.facet#mention", "did": "did:web:zebra.example"},
            ],
        }
    ]
    labels = {"$type": "com.atproto.label.defs#selfLabels", "values": [{"val": "zebralabel"}]}
    post = builder.post(
        author,
        f"zebra crossing {author[-4:]}",
        langs=["zebra"],
        embed=embed,
        facets=facets,
        labels=labels,
        reply_root_uri=root,
        reply_parent_uri=root,
    )
    builder.tick(5)
    quoting = builder.post(author, "zebra quote", langs=["zebra"], quote_uri=root, embed_type="app.bsky.embed.record")
    builder.tick(5)
    return post["uri"], quoting["uri"]


@pytest.fixture
def world(builder: LakeBuilder) -> World:
    made = World()
    builder.identity(ANN, "ann.example.com")
    builder.identity(BOB, "bob.zebra.example.com")
    builder.record(PROFILE, BOB, rkey="self", display_name="Bob Zebra", description="zebra friend")
    root = builder.post(EVE, "the root stays", langs=["en"])
    made.root = root["uri"]
    builder.tick(5)
    made.deleted, quote_by_ann = write_posts(builder, ANN, made.root)
    made.lost, _ = write_posts(builder, BOB, made.root)
    builder.record(LIKE, BOB, subject_uri=made.root, subject_cid=root["cid"])
    builder.record(REPOST, BOB, subject_uri=made.root, subject_cid=root["cid"])
    builder.record(FOLLOW, BOB, subject=EVE)
    builder.record("other", BOB, collection="com.example.note", record_json='{"note": "zebra note"}')
    builder.record(LIKE, EVE, subject_uri=made.root, subject_cid=root["cid"])
    builder.post(EVE, "a child that stays", reply_root_uri=made.root, reply_parent_uri=made.deleted, langs=["en"])
    # So far apart that counts over the whole come from roll-ups.
    builder.tick(9 * 86_400)
    builder.post(EVE, "much later", langs=["en"])
    made.version = builder.commit()
    builder.maintain()
    builder.delete(quote_by_ann)
    made.version = builder.commit()
    return made


@dataclass(frozen=True)
class Call:
    """A request, and what tells how much of the world its answer counts (None: only the bytes are looked at).

    `sees`: whether the word is in the answer, or the number larger, while nothing is deleted.
    """

    path: str
    params: dict[str, Any] = field(default_factory=dict)
    number: Callable[[Any], float] | None = None
    method: str = "GET"
    body: Any = None
    accept: str = "application/json"
    sees: bool = True
    as_of: bool = False


SPAN = {"start": "2026-03-01", "end": "2026-03-12"}


def calls(world: World) -> dict[str, list[Call]]:
    """Operation → how it is asked."""

    def of(uri: str) -> str:
        return quote(uri, safe="")

    edges = [
        Call("/v1/graph/edges", {"kind": kind, "weighted": weighted}, lambda body: len(body["edges"]), as_of=True)
        for kind in ("follow", "like", "repost", "reply", "mention", "quote")
        for weighted in (False, True)
    ]
    edge_files = [
        Call("/v1/graph/edges", {"kind": "mention", "format": form}, accept="*/*")
        for form in ("csv", "ndjson", "parquet", "gexf")
    ]
    groups = [
        Call("/v1/aggregate", {"by": by, "limit": 100}, as_of=True)
        for by in ("lang", "hashtag", "domain", "mention", "self_label")
    ]
    numbers = [
        Call("/v1/aggregate", {"by": by}, lambda body: sum(row["count"] for row in body["groups"]), as_of=True)
        for by in ("author", "hour", "label:mood.feeling", "reply", "media", "reply_to_author", "quoted_author")
    ]
    logs = [
        Call("/v1/records", {"collection": name, "view": view}, as_of=True)
        for name in (POST, PROFILE, "com.example.note")
        for view in ("current", "log")
    ]
    plain = {"fields": "uri,text,alt_texts,links,embed_json,facets_json,labels_json,extra_json,handle"}
    nothing = [Call("/v1/stats", sees=False)]
    return {
        "search": [
            Call("/v1/search", as_of=True),
            Call("/v1/search", plain, as_of=True),
            Call("/v1/search", {"text": WORD}, lambda body: len(body["results"])),
            Call("/v1/search", {"sort": "engaged"}),
            Call("/v1/search", {"sample": 100, "seed": "s"}),
            Call("/v1/search", {"label": "mood.feeling:striped"}, lambda body: len(body["results"])),
            Call("/v1/search", {"total": "exact"}, lambda body: body["meta"]["total"]),
            Call("/v1/search", {"total": "estimate"}, lambda body: body["meta"]["total"]),
            Call("/v1/search", {"min_replies": 2}, lambda body: len(body["results"])),
            Call(
                "/v1/search", {"author": EVE, "fields": "likes"}, lambda body: sum(r["likes"] for r in body["results"])
            ),
            *(Call("/v1/search", accept=media) for media in ("text/csv", "application/x-ndjson")),
            Call("/v1/search", accept="application/vnd.apache.parquet"),
        ],
        "lab_search": [Call("/search"), Call("/search", {"text": WORD}, lambda body: body["meta"]["count"])],
        "lab_export": [Call("/export", accept="*/*")],
        "counts": [
            Call("/v1/counts", {"interval": "day"} | SPAN, lambda body: body["total"]),
            Call(
                "/v1/counts",
                {"interval": "day", "rollups": False, "authors": True} | SPAN,
                lambda b: b["total_authors"],
            ),
            Call("/v1/counts", {"interval": "day", "rollups": False} | SPAN, lambda body: body["total"], as_of=True),
            Call(
                "/v1/counts", {"text": "much", "share": True} | SPAN, lambda b: sum(x["all_posts"] for x in b["counts"])
            ),
        ],
        "aggregate": groups + numbers,
        "post": [
            Call(f"/v1/posts/{of(world.deleted)}"),
            Call(f"/v1/posts/{of(world.lost)}"),
            Call(f"/v1/posts/{of(world.root)}", {"series": "hour"}, lambda body: sum(body["engagement"].values())),
        ],
        "thread": [
            Call(f"/v1/threads/{of(world.root)}"),
            Call(f"/v1/threads/{of(world.deleted)}", sees=False),
        ],
        "author": [
            Call(f"/v1/authors/{BOB}"),
            Call(f"/v1/authors/{ANN}", {}, lambda body: sum(row["current"] for row in body["activity"])),
        ],
        "edges": edges + edge_files,
        "trends": [
            Call("/v1/trends", {"by": by, "end": "2026-03-01T11:00Z", "min_count": 1, "window_minutes": 90}, as_of=True)
            for by in ("hashtag", "domain", "mention", "lang")
        ],
        "records": logs,
        "collections": [Call("/v1/collections", sees=False)],
        "explain": [
            Call("/v1/explain", {"text": WORD}, lambda body: body["matches"]),
            Call("/v1/explain", {"target": "export"}, lambda body: body["matches"]),
        ],
        "export_data": [Call(f"/v1/exports/{id_}/data", accept="*/*") for id_ in world.exports.values()],
        "export_provenance": [Call(f"/v1/exports/{id_}/provenance", sees=False) for id_ in world.exports.values()],
        "export": [Call(f"/v1/exports/{id_}", sees=False) for id_ in world.exports.values()],
        "exports": [Call("/v1/exports", sees=False)],
        "compliance": [
            Call(
                "/v1/compliance",
                method="POST",
                body={"uris": [world.deleted, world.lost, world.root]},
                number=lambda body: body["summary"]["current"],
            ),
            *(
                Call(
                    "/v1/compliance",
                    method="POST",
                    body={"export": id_},
                    number=lambda body: body["summary"]["current"],
                )
                for id_ in world.exports.values()
            ),
        ],
        "stats": nothing,
        # What people say themselves about posts, and what has no data.
        "list_labels": [Call("/v1/labels", sees=False)],
        "get_label": [Call("/v1/labels/mood", sees=False)],
        "live": [Call("/health/live", sees=False)],
        "ready": [Call("/health/ready", sees=False)],
        # They begin or end something and answer with its state; what they make is asked for above.
        "create_export": [Call("/v1/exports", method="POST", body={"name": "another"}, sees=False)],
        "put_label": [],
        "delete_label": [],
        "delete_label_version": [],
        "delete_export": [],
    }


def content(answer: httpx.Response) -> str:
    """All text of an answer, also of files."""
    data = answer.content
    if data[:4] == b"\x28\xb5\x2f\xfd":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    elif data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        return repr(table.to_pylist()) + repr(table.schema.metadata)
    return data.decode()


def ask(client: httpx.Client, call: Call, **more: Any) -> tuple[str, float | None]:
    answer = client.request(
        call.method, call.path, params=call.params | more, json=call.body, headers={"Accept": call.accept}
    )
    place = f"{call.path} {call.params}"
    assert answer.status_code < 300, f"{place}: {answer.text[:400]}"
    return content(answer).lower(), None if call.number is None else call.number(answer.json())


def start_export(client: httpx.Client, **body: Any) -> str:
    made = client.post("/v1/exports", json=body)
    assert made.status_code == 202, made.text
    found: str = made.json()["id"]
    return found


def finish_export(client: httpx.Client, export: str) -> None:
    deadline = time.monotonic() + 60
    while (state := client.get(f"/v1/exports/{export}").json())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert state["state"] == "done", state


def forget(builder: LakeBuilder, world: World) -> None:
    """What the people do: Ann deletes her post, Bob his account."""
    builder.tick(60)
    builder.delete(world.deleted)
    builder.account(BOB, active=False, status="deleted")
    builder.commit()


@pytest.mark.parametrize("upkeep", [False, True], ids=["at-once", "after-erasure"])
def test_what_was_deleted_is_in_no_answer(
    builder: LakeBuilder, make_client: MakeClient, world: World, upkeep: bool
) -> None:
    client = make_client(exports_per_owner=20, access={"requests_per_minute": 0, "bytes_per_day": 0})
    table = "uri,feeling\n" + "".join(f"{uri},striped\n" for uri in (world.root, world.deleted, world.lost))
    made = client.put("/v1/labels/mood", content=table, headers={"Content-Type": "text/csv"})
    assert made.status_code == 201, made.text
    forms = [("csv", "none"), ("csv", "gzip"), ("ndjson", "zstd"), ("parquet", "none")]
    for form, compression in forms:
        fields = ["uri", "text", "langs", "links", "handle", "label:mood.feeling"]
        export = start_export(client, format=form, compression=compression, fields=fields)
        finish_export(client, export)
        world.exports[f"{form}-{compression}"] = export

    asked = calls(world)
    paths = client.get("/openapi.json").json()["paths"]
    operations = {item["operationId"] for methods in paths.values() for item in methods.values()}
    assert operations == set(asked), "an operation without a line here, or a line without an operation"

    before = {}
    blind, told = [], []
    for name, several in asked.items():
        for number, call in enumerate(several):
            text, _ = before[name, number] = ask(client, call)
            if call.sees and call.number is None and WORD not in text:
                blind.append(f"{name} {call.params}")
    assert not blind, "they show nothing, so that they prove nothing"
    forget(builder, world)
    if upkeep:
        builder.maintain()
    for name, several in asked.items():
        for number, call in enumerate(several):
            for more in [{}, {"as_of": world.version}] if call.as_of else [{}]:
                text, count = ask(client, call, **more)
                if WORD in text:
                    told.append(f"{name} {call.params} {more}: {text[max(0, text.index(WORD) - 80) :][:200]}")
                known = before[name, number][1]
                if count is not None and known is not None and count >= known:
                    told.append(f"{name} {call.params} {more}: {known} before, {count} after")
    assert not told


def test_an_export_that_runs_meanwhile_forgets_too(
    builder: LakeBuilder, make_client: MakeClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion is committed when the rows were read and the file is not finished."""
    produce = api.exports.work.produce

    def produce_then_forget(*arguments: Any) -> Any:
        found = produce(*arguments)
        forget(builder, world)
        return found

    monkeypatch.setattr(api.exports.work, "produce", produce_then_forget)
    client = make_client()
    export = start_export(client, format="csv")
    finish_export(client, export)
    answer = client.get(f"/v1/exports/{export}/data")
    assert WORD not in answer.text
    assert answer.text.count("\n") == 1 + 3
    state = client.get(f"/v1/exports/{export}").json()
    assert (state["rows"], state["removed_since"]) == (3, 3)
    assert client.get(f"/v1/exports/{export}/provenance").json()["removed_since"] == 3
