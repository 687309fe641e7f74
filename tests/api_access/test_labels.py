"""Label tables over HTTP: upload, versions, ownership, deletion, and errors that name row and column."""

from __future__ import annotations

import asyncio
import io
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI

from api.access import AccessSettings, Principal, Scope
from api.access import install as install_access
from api.access.keys import create_key
from api.errors import MEDIA_TYPE, ApiError, install_handlers
from api.labels.config import LabelSettings
from api.labels.routes import router
from api.labels.service import Labels
from api.labels.service import install as install_labels

DID = "did:plc:ewvi7nxzyoun6zhxrhs64oiz"
POST = f"at://{DID}/app.bsky.feed.post"
TID = "3l6oveex3ii2l"
PARQUET = "application/vnd.apache.parquet"
Answer = httpx.Response


class Service:
    """An application with label tables and keys, and calls with a key of each person."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.app = FastAPI()
        install_handlers(self.app)
        install_access(self.app, AccessSettings(), host="127.0.0.1", state_dir=folder)
        self.labels: Labels = install_labels(self.app, LabelSettings(**settings), state_dir=folder)
        self.app.include_router(router, prefix="/v1")
        self.tokens: dict[str, str] = {}

    def who(self, person: str, *scopes: Scope) -> Principal:
        made = create_key(
            self.folder / "keys.sqlite",
            name=person,
            scopes=frozenset(scopes or {Scope.READ, Scope.LABELS}),
            days=None,
            now=0,
        )
        self.tokens[person] = made.token
        return Principal(made.info.id, made.info.scopes, made.info.id)

    def request(
        self, method: str, path: str, *, person: str | None = None, body: Any = None, kind: str = "text/csv"
    ) -> Answer:
        headers = {"content-type": kind} if body is not None else {}
        if person is not None:
            headers["authorization"] = f"Bearer {self.tokens[person]}"

        async def call() -> Answer:
            transport = httpx.ASGITransport(self.app, client=("127.0.0.1", 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
                return await http.request(method, path, headers=headers, content=body)

        return asyncio.run(call())

    def put(self, name: str, body: str | bytes, **more: Any) -> Answer:
        return self.request("PUT", f"/v1/labels/{name}", body=body, **more)

    def files(self) -> list[str]:
        return sorted(path.suffix for path in self.labels.folder.iterdir() if path.suffix in (".parquet", ".upload"))


Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda **settings: Service(tmp_path, **settings)


def problem(answer: Answer, status: int, slug: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"/problems/{slug}"
    return body


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_a_csv_becomes_a_table_with_typed_columns(make: Make) -> None:
    service = make()
    body = f'uri,mood,score,ok,code,n\n{POST}/{TID},angry,0.5,true,007,1\n{POST}/self,"sad, very",,FALSE,08,\n'
    answer = service.put("mood", body)
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == "/v1/labels/mood"
    version = answer.json()["versions"][0]
    assert (version["version"], version["key"], version["rows"]) == (1, "uri", 2)
    kinds = {column["name"]: column["kind"] for column in version["columns"]}
    assert kinds == {"mood": "text", "score": "number", "ok": "boolean", "code": "text", "n": "integer"}
    assert version["columns"][1]["summary"] == {"missing": 1, "distinct": 1, "min": 0.5, "max": 0.5}
    stored = pq.read_table(next(service.labels.folder.glob("*.parquet"))).sort_by("v0")
    assert stored["did"].to_pylist() == [DID, DID]
    assert stored["rkey_tid"].null_count == stored["rkey_text"].null_count == 1
    assert stored["v4"].to_pylist() == [1, None]
    assert service.request("GET", "/v1/labels/mood").json() == answer.json()
    assert service.request("GET", "/v1/labels").json() == {"labels": [answer.json()]}


def test_a_parquet_keeps_its_types(make: Make) -> None:
    service = make()
    body = parquet(
        did=[DID, "did:web:example.org"],
        lean=pa.array(["left", None]).dictionary_encode(),
        followers=pa.array([3, 4], pa.uint16()),
        share=pa.array([0.25, float("nan")], pa.float32()),
        bot=[True, False],
    )
    answer = service.put("cohort", body, kind=PARQUET)
    assert answer.status_code == 201, answer.text
    version = answer.json()["versions"][0]
    assert [column["kind"] for column in version["columns"]] == ["text", "integer", "number", "boolean"]
    assert version["columns"][2]["summary"]["missing"] == 1


def test_versions_count_up_and_the_same_bytes_make_none(make: Make) -> None:
    service = make()
    first = f"did,lean\n{DID},left\n"
    assert service.put("lean", first).status_code == 201
    again = service.put("lean", first)
    assert again.status_code == 200
    assert len(again.json()["versions"]) == 1
    second = service.put("lean", first.replace("left", "right"))
    assert [item["version"] for item in second.json()["versions"]] == [1, 2]
    assert service.request("DELETE", "/v1/labels/lean/versions/2").status_code == 204
    third = service.put("lean", first.replace("left", "center"))
    assert [item["version"] for item in third.json()["versions"]] == [1, 3], "numbers are not used again"
    assert service.files() == [".parquet", ".parquet"]
    assert service.request("DELETE", "/v1/labels/lean").status_code == 204
    assert service.files() == []
    problem(service.request("GET", "/v1/labels/lean"), 404, "not-found")
    problem(service.request("DELETE", "/v1/labels/lean"), 404, "not-found")


def test_a_table_is_its_owners(make: Make) -> None:
    service = make()
    ada, bob = service.who("ada"), service.who("bob")
    body = f"did,lean\n{DID},left\n"
    assert service.put("lean", body, person="ada").status_code == 201
    problem(service.request("GET", "/v1/labels/lean", person="bob"), 404, "not-found")
    problem(service.request("GET", f"/v1/labels/lean?owner={ada.owner}", person="bob"), 404, "not-found")
    problem(service.request("DELETE", "/v1/labels/lean", person="bob"), 404, "not-found")
    problem(service.request("GET", "/v1/labels/lean"), 404, "not-found")
    assert service.request("GET", "/v1/labels", person="bob").json() == {"labels": []}
    with pytest.raises(ApiError, match="no label table 'lean'"):
        service.labels.column(f"{ada.owner}/lean", bob)
    assert service.put("lean", body, person="bob").status_code == 201, "names are each owner's own"
    assert service.put("lean?shared=true", body, person="ada").status_code == 201
    assert len(service.request("GET", "/v1/labels", person="bob").json()["labels"]) == 2
    assert service.labels.column(f"{ada.owner}/lean", bob).pinned == f"{ada.owner}/lean.lean@2"
    problem(service.request("DELETE", f"/v1/labels/lean?owner={ada.owner}", person="bob"), 403, "forbidden")
    service.who("operator", Scope.ADMIN)
    assert service.request("DELETE", f"/v1/labels/lean?owner={ada.owner}", person="operator").status_code == 204
    problem(service.request("GET", "/v1/labels/lean", person="ada"), 404, "not-found")


def test_reading_does_not_let_upload(make: Make) -> None:
    service = make()
    service.who("eve", Scope.READ)
    problem(service.put("lean", f"did\n{DID}\n", person="eve"), 403, "forbidden")
    problem(service.request("DELETE", "/v1/labels/lean", person="eve"), 403, "forbidden")


BAD_CSV = [
    ("", "body is empty"),
    ("\n\n", "no rows: send a header"),
    ("uri,mood\n", "no rows"),
    ("mood\nx\n", "exactly one column must be named"),
    (f"uri,did\n{POST}/{TID},{DID}\n", "exactly one column must be named"),
    (f"did,Lean left\n{DID},x\n", "column 'Lean left': name columns"),
    (f"did,a,a\n{DID},x,y\n", "two columns have this name"),
    (f"did,a\n{DID},x\n\nalice.bsky.social,y\n", "row 3, column 'did': 'alice.bsky.social' is not a did"),
    (f"did,a\n{DID},x\n,y\n", "row 3, column 'did': it is empty"),
    ("uri,a\nat://alice.bsky.social/app.bsky.feed.post/3l,x\n", "row 2, column 'uri': .* not a handle"),
    (f"uri,a\n{POST}/{TID}/x,1\n", "row 2, column 'uri'"),
    (f"did,a\n{DID},x\n{DID},y\n", "row 3, column 'did': the same did stands in row 2"),
    (f"did,a\n{DID},x\ndid:web:b,y,z\n", "row 3: it has 3 values, the header has 2"),
    (f"did;a\n{DID};x\n", "commas"),
    (f"did,a\n{DID},{'x' * 300}\n", "row 2, column 'a': the value has more than 256"),
    (f"did,a\n{DID},1e999\n", "row 2, column 'a': the value is infinite"),
    (f"did,a\n{DID},x\0y\n", "UTF-8"),
    (f"did,a\n{DID},x\n".encode("utf-16"), "UTF-8"),
    (f"did,a\n{DID},caf".encode() + b"\xe9\n", "row 2, column 'a': the text is not UTF-8"),
    (b"PAR1 is not CSV", "Parquet"),
]


@pytest.mark.parametrize(("body", "words"), BAD_CSV, ids=range(len(BAD_CSV)))
def test_what_is_wrong_with_a_csv_is_said_with_its_place(make: Make, body: str | bytes, words: str) -> None:
    service = make()
    found = problem(service.put("mood", body), 400, "invalid-body")
    assert re.search(words, found["detail"]), found["detail"]
    assert service.files() == []


def test_many_wrong_rows_are_counted_and_the_first_named(make: Make) -> None:
    body = "did,a\n" + "".join(f"handle{number}.example,{number}\n" for number in range(500))
    found = problem(make().put("mood", body), 400, "invalid-body")
    assert "(and 499 more)" in found["detail"]
    assert len(found["errors"]) == len(found["rows"]) == 20
    assert found["rows"][3]["row"] == 5
    assert found["errors"][3] == {
        "parameter": "did",
        "location": "body",
        "detail": found["rows"][3]["detail"],
        "pointer": "/5/did",
    }


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"did": [1, 2]}, "column 'did' holds int64"),
        ({"did": [DID], "a": [[1]]}, "column 'a' holds list"),
        ({"did": [DID], "a": pa.array([0], pa.timestamp("us"))}, "column 'a' holds timestamp"),
        ({"did": [DID, None]}, "row 2, column 'did': it is empty"),
        ({"did": pa.array([], pa.string())}, "no rows"),
        ({"did": [DID], "a": pa.array([2**63], pa.uint64())}, "column 'a': Integer value"),
    ],
)
def test_what_is_wrong_with_a_parquet_is_said(make: Make, columns: dict[str, Any], words: str) -> None:
    found = problem(make().put("mood", parquet(**columns), kind=PARQUET), 400, "invalid-body")
    assert words in found["detail"]


def test_a_damaged_parquet_is_an_answer_not_a_crash(make: Make) -> None:
    service = make()
    whole = parquet(did=[f"did:plc:{number}" for number in range(2000)], a=list(range(2000)))
    for position in range(8, len(whole), len(whole) // 12):
        damaged = bytearray(whole)
        damaged[position : position + 6] = b"\xff\x7f\xff\x00\xff\xff"
        answer = service.put("mood", bytes(damaged), kind=PARQUET)
        assert answer.status_code in (200, 201, 400), answer.text
    problem(service.put("mood", whole[:-10], kind=PARQUET), 400, "invalid-body")
    assert ".upload" not in service.files()


def test_a_parquet_that_expands_a_thousandfold_is_refused(make: Make) -> None:
    service = make(parse_memory_mb=512)
    value = pa.DictionaryArray.from_arrays(pa.array([0] * 60_000, pa.int32()), pa.array(["x" * 200_000]))
    body = parquet(did=[f"did:plc:{number}" for number in range(60_000)], a=value)
    assert len(body) < 2 * 2**20
    found = problem(service.put("mood", body, kind=PARQUET), 400, "invalid-body")
    assert "row 1, column 'a': the value has more than 256 characters" in found["detail"]


@pytest.mark.parametrize(
    ("settings", "status", "slug", "words"),
    [
        ({"rows": 2}, 400, "invalid-body", "rows"),
        ({"columns": 0}, 400, "invalid-body", "value columns"),
        ({"upload_bytes": 1024}, 413, "too-large", "1024 bytes"),
    ],
)
def test_sizes_are_capped(make: Make, settings: dict[str, int], status: int, slug: str, words: str) -> None:
    service = make(**settings)
    body = "did,a\n" + "".join(f"did:plc:{number:040},{number}\n" for number in range(30))
    assert words in problem(service.put("mood", body), status, slug)["detail"]
    assert service.files() == []


def test_an_owner_has_room_for_so_much(make: Make) -> None:
    service = make(tables_per_owner=2, versions_per_table=2)
    for name in ("a", "b"):
        assert service.put(name, f"did,x\n{DID},1\n").status_code == 201
    problem(service.put("c", f"did,x\n{DID},1\n"), 409, "conflict")
    assert service.put("a", f"did,x\n{DID},2\n").status_code == 201
    body = problem(service.put("a", f"did,x\n{DID},3\n"), 409, "conflict")
    assert "/v1/labels/a/versions/1" in body["detail"]


def test_uploads_are_bounded_in_number_and_time(make: Make) -> None:
    service = make(uploads_open=1, receive_seconds=0.2)
    body = f"did,x\n{DID},1\n"

    async def slow() -> AsyncIterator[bytes]:
        yield body.encode()[:5]
        await asyncio.sleep(30)

    async def both() -> list[Answer]:
        transport = httpx.ASGITransport(service.app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
            kind = {"content-type": "text/csv"}
            first = asyncio.create_task(http.put("/v1/labels/a", content=slow(), headers=kind))
            while not service.files():
                await asyncio.sleep(0.001)
            return [await http.put("/v1/labels/b", content=body, headers=kind), await first]

    second, first = asyncio.run(both())
    assert second.headers["retry-after"] == "30"
    problem(second, 503, "over-capacity")
    assert "did not arrive" in problem(first, 413, "too-large")["detail"]
    assert service.files() == []
    assert service.put("b", body).status_code == 201


def test_only_csv_and_parquet_are_read(make: Make) -> None:
    problem(make().put("mood", "{}", kind="application/json"), 415, "unsupported-media-type")


@pytest.mark.parametrize("name", ["..", "A", "a" * 65, "mood.csv", "%2e%2e%2fx", "a:b"])
def test_names_are_names(make: Make, name: str) -> None:
    answer = make().put(name, f"did\n{DID}\n")
    assert answer.status_code in (404, 405, 422)


def test_what_a_crash_left_is_swept_at_the_next_start(make: Make) -> None:
    service = make()
    assert service.put("lean", f"did,lean\n{DID},left\n").status_code == 201
    for name in ("0123.upload", "4567.parquet"):
        (service.labels.folder / name).write_bytes(b"left over")
        os.utime(service.labels.folder / name, (0, 0))
    (service.labels.folder / "89ab.upload").write_bytes(b"on its way")
    assert make().files() == [".parquet", ".upload"]
    assert make().request("GET", "/v1/labels/lean").status_code == 200
