"""The OWASP API Security Top 10 (2023) against the whole service: each item that concerns the API, shown to hold."""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import logging
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api.access import AccessSettings, Scope
from api.access.keys import CreatedKey, create_key
from api.access.scopes import required_scope
from api.config import ApiSettings
from api.engine import Engine
from api.service import ApiService
from tests.api.conftest import MakeClient
from tests.api.lake_builder import LakeBuilder, did

FORGED = [
    "http://169.254.169.254/latest/meta-data/",
    "http://127.0.0.1:{port}/canary",
    "s3://bucket/key.parquet",
    "file:///etc/passwd",
    "/etc/passwd",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "*/**/*.parquet",
    "{state}/keys.sqlite",
]
INJECTED = [
    "'; DROP TABLE posts; --",
    "' OR '1'='1",
    "') UNION SELECT content FROM read_text('/etc/passwd') --",
    "$files",
    "$p0",
    "?",
    "{}",
    "%s",
    "\\",
    '"',
    "\x00",
    "a\u202eb",
    "𝕏" * 50,
]
UNLIMITED = AccessSettings(requests_per_minute=0, bytes_per_day=0)
_FREE_TEXT = {"text", "author", "url", "domain", "label", "cursor", "fields", "uri", "did", "actor", "start"}
KEY = re.compile(r"bpe_[a-z0-9]{8}_[0-9A-Za-z]{49}")


def fill(builder: LakeBuilder) -> list[dict[str, Any]]:
    """Thirty posts of three accounts, with likes, and one handle."""
    made = []
    for number in range(30):
        made.append(builder.post(did(number % 3), f"post number {number}", langs=["en"]))
        builder.tick(60)
    for number in range(10):
        builder.record("app.bsky.feed.like", did(9), subject_uri=made[number]["uri"], subject_cid=made[number]["cid"])
        builder.tick(1)
    builder.identity(did(1), "one.example.org")
    builder.commit()
    return made


@pytest.fixture
def posts(builder: LakeBuilder) -> list[dict[str, Any]]:
    """The same for a test of its own."""
    return fill(builder)


@dataclass(frozen=True)
class Shared:
    """One service for the tests that only read, with what is in it."""

    client: httpx.Client
    posts: list[dict[str, Any]]
    folder: Path


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """A service over the lake of `posts`, which no test changes."""
    folder = tmp_path_factory.mktemp("shared")
    builder = LakeBuilder(folder)
    made = fill(builder)
    settings = ApiSettings(port=0, state_dir=folder / "state", memory_limit_mb=512, access=UNLIMITED)
    service, stop = ApiService(settings, str(builder.root), builder.manifest_path, lambda _: None), threading.Event()
    thread = threading.Thread(target=service.run, args=(stop,))
    thread.start()
    assert service.ready.wait(20)
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=60) as client:
        yield Shared(client, made, folder)
    stop.set()
    thread.join(20)
    builder.close()


def key_of(tmp_path: Path, *scopes: Scope) -> CreatedKey:
    return create_key(
        tmp_path / "state" / "keys.sqlite", name="Ada", scopes=frozenset(scopes), days=None, now=time.time()
    )


def bearer(key: CreatedKey) -> dict[str, str]:
    return {"authorization": f"Bearer {key.token}"}


def operations(client: httpx.Client) -> list[tuple[str, str, dict[str, Any]]]:
    """Every operation of the service's own document: method, path, description."""
    paths = client.get("/openapi.json").json()["paths"]
    return [(method, path, item) for path, methods in paths.items() for method, item in methods.items()]


def filled(path: str, uri: str) -> str:
    """A path with its parameters set to something that exists."""
    values = {"uri": uri, "did": uri.split("/")[2], "actor": uri.split("/")[2], "name": "mood", "version": "1"}
    return re.sub(r"{(\w+)(?::path)?}", lambda match: values.get(match[1], "1"), path)


# --- API1: object level authorization --------------------------------------------------------------------------------


def test_api1_what_is_deleted_is_in_no_answer(
    builder: LakeBuilder, posts: list[dict[str, Any]], client: httpx.Client
) -> None:
    gone, banned = posts[3], posts[4]
    others = [post for post in posts if post["did"] != banned["did"] and post is not gone]
    builder.delete(gone["uri"])
    builder.account(banned["did"], active=False, status="takendown")
    builder.commit()
    read = 0
    for method, path, item in operations(client):
        if method != "get" or not path.startswith("/v1") or path.startswith("/v1/exports"):
            continue
        for target in (gone["uri"], others[0]["uri"]):
            parameters: dict[str, Any] = {}
            for parameter in item.get("parameters", []):
                if parameter["in"] == "query" and parameter.get("required"):
                    schema = parameter["schema"]
                    options = {"collection": "app.bsky.feed.post", "by": "author", "edge": "reply", "kind": "reply"}
                    parameters[parameter["name"]] = (
                        options.get(parameter["name"]) or (schema.get("enum") or ["reply"])[0]
                    )
            answer = client.get(filled(path, target), params=parameters)
            assert answer.status_code < 500, (path, answer.text)
            read += answer.status_code == 200
            assert '"post number 3"' not in answer.text, path
            assert '"post number 4"' not in answer.text, path
    assert read >= 8, "too few answers to say anything"
    texts = {row["text"] for row in client.get("/v1/search", params={"limit": 1000}).json()["results"]}
    assert texts == {post["text"] for post in others}


def test_api1_a_key_sees_only_what_is_its_own(
    tmp_path: Path, posts: list[dict[str, Any]], make_client: MakeClient
) -> None:
    client = make_client()
    ada, bob = (key_of(tmp_path, Scope.READ, Scope.LABELS, Scope.EXPORT) for _ in range(2))
    body = f"uri,mood\n{posts[0]['uri']},angry\n"
    made = client.put("/v1/labels/mood", content=body, headers=bearer(ada) | {"content-type": "text/csv"})
    assert made.status_code == 201
    for owner in ("", f"{ada.info.id}/"):
        asked = {"label": f"{owner}mood:angry"}
        for path in ("/v1/search", "/v1/counts"):
            assert client.get(path, params=asked, headers=bearer(bob)).status_code == 404
            assert client.get(path, params=asked).status_code == 404
    found = client.get("/v1/search", params={"label": "mood:angry"}, headers=bearer(ada)).json()
    assert [row["uri"] for row in found["results"]] == [posts[0]["uri"]]
    assert client.delete("/v1/labels/mood", headers=bearer(bob)).status_code == 404


def finished(client: httpx.Client, location: str, headers: dict[str, str]) -> dict[str, Any]:
    """The export once it is done."""
    deadline = time.monotonic() + 120
    while (state := client.get(location, headers=headers).json())["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert state["state"] == "done", state
    found: dict[str, Any] = state
    return found


def test_api1_an_export_is_its_owners(tmp_path: Path, posts: list[dict[str, Any]], make_client: MakeClient) -> None:
    client = make_client()
    ada, bob = (key_of(tmp_path, Scope.READ, Scope.EXPORT) for _ in range(2))
    made = client.post("/v1/exports", json={"format": "csv"}, headers=bearer(ada) | {"idempotency-key": "same"})
    assert made.status_code == 202, made.text
    location = made.headers["location"]
    state = finished(client, location, bearer(ada))
    for headers in (bearer(bob), {}):
        for path in (location, state["download"], state["provenance"]):
            assert client.get(path, headers=headers).status_code == 404, path
        assert client.delete(location, headers=headers).status_code == 404
        assert client.post("/v1/compliance", json={"export": state["id"]}, headers=headers).status_code == 404
        assert client.get("/v1/exports", headers=headers).json()["exports"] == []
    other = client.post("/v1/exports", json={"format": "csv"}, headers=bearer(bob) | {"idempotency-key": "same"})
    assert other.json()["id"] != state["id"], "an idempotency key is its owner's too"
    finished(client, other.headers["location"], bearer(bob))
    assert client.get(state["download"], headers=bearer(ada)).status_code == 200


def test_the_service_writes_nothing_into_the_lake(
    builder: LakeBuilder, tmp_path: Path, posts: list[dict[str, Any]], make_client: MakeClient
) -> None:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in builder.root.rglob("*") if path.is_file()}

    before = content()
    client = make_client()
    body = f"uri,mood\n{posts[0]['uri']},angry\n"
    assert client.put("/v1/labels/mood", content=body, headers={"content-type": "text/csv"}).status_code == 201
    made = client.post("/v1/exports", json={"format": "parquet", "label": ["mood:angry"]})
    finished(client, made.headers["location"], {})
    for path in (
        "/v1/search?total=exact&sort=engaged",
        "/v1/counts?authors=true",
        "/v1/aggregate?by=lang",
        "/v1/stats",
    ):
        assert client.get(path).status_code == 200
    assert content() == before


# --- API2: authentication --------------------------------------------------------------------------------------------


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """The spans of requests, in memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("api.middleware._TRACER", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def test_api2_a_key_is_nowhere_but_in_its_header(
    tmp_path: Path,
    posts: list[dict[str, Any]],
    make_client: MakeClient,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    client = make_client(access={"require_key": True})
    key = key_of(tmp_path, Scope.READ)
    assert client.get("/v1/search?text=post", headers=bearer(key)).status_code == 200
    assert client.get("/v1/search?nonsense=1", headers=bearer(key)).status_code == 400
    assert client.get("/v1/labels/none", headers=bearer(key)).status_code == 404
    in_address = client.get("/v1/search", params={"key": key.token})
    assert in_address.status_code == 400
    forged = key.token[:-1] + ("1" if key.token.endswith("0") else "0")
    assert client.get("/v1/stats", headers={"authorization": f"Bearer {forged}"}).status_code == 401
    assert not KEY.search(in_address.text)
    for record in caplog.records:
        if record.name.startswith(("explorer", "uvicorn")):
            assert not KEY.search(repr(record.__dict__)), record.name
    found = spans.get_finished_spans()
    assert found
    assert not any(KEY.search(span.to_json()) for span in found)
    out, err = capfd.readouterr()
    assert not KEY.search(out + err)
    secret = key.token.split("_")[2].encode()
    for path in (tmp_path / "state").rglob("*"):
        assert path.is_dir() or secret not in path.read_bytes(), path


def test_api2_every_data_address_asks_for_a_key(
    tmp_path: Path, posts: list[dict[str, Any]], make_client: MakeClient
) -> None:
    client = make_client(access={"require_key": True})
    wrong = {"authorization": "Bearer bpe_aaaaaaaa_" + "0" * 49}
    checked = 0
    for method, path, _ in operations(client):
        if required_scope(method.upper(), path) is None:
            assert not path.startswith("/v1")
            continue
        answer = client.request(method, filled(path, posts[0]["uri"]))
        assert answer.status_code == 401, (method, path)
        checked += 1
    assert checked >= 12
    assert client.get("/v1/search", headers=wrong).status_code == 401


# --- API3: object property level authorization -----------------------------------------------------------------------


def test_api3_answers_have_documented_members_only(shared: Shared) -> None:
    client = shared.client
    document = client.get("/openapi.json").json()
    for method, path, item in operations(client):
        if not path.startswith("/v1"):
            continue
        for status, answer in item["responses"].items():
            if status == "200" and "application/json" in answer.get("content", {}):
                reference = answer["content"]["application/json"]["schema"].get("$ref")
                if path == "/v1/exports/{id}/provenance":
                    # The side file of an export: its members are those of the query.
                    continue
                assert reference, (method, path)
                shape = document["components"]["schemas"][reference.rpartition("/")[2]]
                assert shape["additionalProperties"] is False, (method, path)
    page = client.get("/v1/search").json()
    assert set(page) <= set(document["components"]["schemas"]["Page"]["properties"])
    inner = {"kafka_partition", "kafka_offset", "erased", "source_host", "extra_json", "rkey_tid", "envelope_json"}
    assert not inner & set(page["results"][0]), "columns of the storage come only when asked for"


# --- API4: resource consumption --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parameters", "status"),
    [
        ("/v1/search", {"limit": 1001}, 422),
        ("/v1/search", {"limit": -1}, 422),
        ("/v1/search", {"author": ["did:plc:a"] * 101}, 422),
        ("/v1/search", {"text": "a" * 20_000}, 413),
        ("/v1/search", {"text": "(" * 500}, 422),
        ("/v1/search", {"text": " OR ".join(f"w{number}" for number in range(400))}, 422),
        ("/v1/counts", {"interval": "minute", "start": "1970-01-01", "end": "2026-01-01"}, 422),
        ("/v1/aggregate", {"by": ["lang", "author", "hashtag"]}, 422),
        ("/v1/search", {"cursor": "a" * 513}, 422),
        ("/v1/search", {"start": "1" * 400}, 422),
    ],
)
def test_api4_what_is_too_much_is_refused(shared: Shared, path: str, parameters: dict[str, Any], status: int) -> None:
    answer = shared.client.get(path, params=parameters)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_api4_bodies_and_headers_are_capped(shared: Shared) -> None:
    def ask(method: str, path: str, **more: Any) -> int:
        # A connection of its own: the service closes one whose body it did not read.
        with httpx.Client(base_url=shared.client.base_url, timeout=60) as client:
            return client.request(method, path, **more).status_code

    table = {"content-type": "text/csv"}
    bomb = gzip.compress(b"0" * 50_000_000)
    assert ask("PUT", "/v1/labels/a", content=bomb, headers=table | {"content-encoding": "gzip"}) == 415
    with socket.create_connection((shared.client.base_url.host, shared.client.base_url.port or 80), 60) as raw:
        raw.sendall(b"PUT /v1/labels/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000000000\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert ask("GET", "/v1/search", headers={"x-filler": "a" * 20_000}) == 413

    def endless() -> Iterator[bytes]:
        for _ in range(4096):
            yield b"x" * 65_536

    # Closed while we are still sending is as good a refusal as an answer.
    with contextlib.suppress(httpx.TransportError):
        assert ask("POST", "/v1/search", content=endless()) in (405, 413)
    assert ask("GET", "/health/live") == 200


def test_api4_heavy_queries_do_not_starve_light_ones(builder: LakeBuilder, make_client: MakeClient) -> None:
    for number in range(3000):
        builder.post(did(number % 50), f"word{number} " + "lorem ipsum dolor " * 10, langs=["en"])
        builder.tick(10)
    builder.commit()
    client = make_client(heavy_bytes=1, heavy_slots=1, light_slots=2, queue_length=4, queue_seconds=5, query_seconds=5)
    heavy = {"text": "*o*r*e*m* OR *i*p*s*u*m* OR nothing", "sort": "engaged", "total": "exact", "limit": 1000}

    def ask(_: int) -> int:
        return client.get("/v1/search", params=heavy).status_code

    with ThreadPoolExecutor(30) as pool:
        running = [pool.submit(ask, number) for number in range(30)]
        light = []
        while not all(item.done() for item in running):
            light.append(client.get("/health/ready").status_code)
            light.append(client.get("/v1/stats").status_code)
    statuses = [item.result() for item in running]
    assert set(statuses) <= {200, 429, 503, 504}
    assert statuses.count(200) >= 1
    assert statuses.count(503) + statuses.count(429) >= 1, "the queue was never full: the test shows nothing"
    assert set(light) == {200}


def test_api4_slow_clients_do_not_starve_others(shared: Shared) -> None:
    client = shared.client
    address = (client.base_url.host, client.base_url.port or 80)
    opened = [socket.create_connection(address, timeout=5) for _ in range(200)]
    try:
        for connection in opened:
            connection.sendall(b"GET /v1/search HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        for _ in range(5):
            assert client.get("/v1/search").status_code == 200
    finally:
        for connection in opened:
            connection.close()


# --- API5: function level authorization ------------------------------------------------------------------------------


def test_api5_there_are_no_administrative_addresses(shared: Shared) -> None:
    client = shared.client
    for path in ("/metrics", "/debug", "/admin", "/v1/admin", "/v1/keys", "/v1/admin/keys", "/.env", "/redoc"):
        assert client.get(path).status_code in (403, 404), path
    assert not [path for _, path, _ in operations(client) if "admin" in path or "key" in path]


def test_api5_scopes_hold_for_every_operation(
    tmp_path: Path, posts: list[dict[str, Any]], make_client: MakeClient
) -> None:
    client = make_client(access={"require_key": True})
    keys = {scope: key_of(tmp_path, scope) for scope in Scope}
    for method, path, _ in operations(client):
        needed = required_scope(method.upper(), path)
        for scope, key in keys.items():
            answer = client.request(method, filled(path, posts[0]["uri"]), headers=bearer(key))
            if needed is None or scope in (needed, Scope.ADMIN):
                assert answer.status_code not in (401, 403), (method, path, scope)
            else:
                assert answer.status_code == 403, (method, path, scope)


# --- API6: business flows (mass download) ----------------------------------------------------------------------------


def test_api6_reading_everything_uses_up_the_days_bytes(posts: list[dict[str, Any]], make_client: MakeClient) -> None:
    client = make_client(access={"bytes_per_day": 20_000})
    statuses = [client.get("/v1/search", params={"text": "post"}).status_code for _ in range(20)]
    assert statuses[0] == 200
    assert statuses[-1] == 429
    refused = client.get("/v1/search", params={"text": "post"})
    assert int(refused.headers["retry-after"]) >= 1
    assert '"bytes-scanned";r=0' in refused.headers["ratelimit"]
    assert client.get("/v1/stats").status_code == 200, "what reads no files goes on"


# --- API7: server side request forgery -------------------------------------------------------------------------------


class Sockets:
    """Notes what this process opens while `watching`: connections to elsewhere, and files."""

    watching = False
    connected: list[Any]
    opened: list[str]

    def __init__(self) -> None:
        self.connected, self.opened = [], []
        # A hook cannot be removed again: it looks at the flag.
        sys.addaudithook(self._seen)

    def _seen(self, event: str, arguments: Any) -> None:
        if not self.watching:
            return
        if event == "socket.connect":
            self.connected.append(arguments[1])
        elif event == "open" and isinstance(arguments[0], str) and "/etc/" in arguments[0]:
            self.opened.append(arguments[0])


def asked_with(shared: Shared, values: Sequence[str]) -> Iterator[tuple[str, httpx.Response]]:
    """Sends values in every query and path parameter of every GET: all of them in texts, once; elsewhere one by turns."""
    turn = itertools.cycle(values)
    free = set(_FREE_TEXT)
    for method, path, item in operations(shared.client):
        if method != "get" or not path.startswith("/v1"):
            continue
        for parameter in item.get("parameters", []):
            name = parameter["name"]
            for value in values if name in free else itertools.islice(turn, 1):
                if parameter["in"] == "query":
                    answer = shared.client.get(filled(path, shared.posts[0]["uri"]), params={name: value})
                else:
                    given = path.replace(f"{{{name}}}", quote(value, safe="/"))
                    answer = shared.client.get(filled(given, shared.posts[0]["uri"]))
                yield f"{path} {name}={value!r}: {answer.text[:300]}", answer
            free.discard(name)


def test_api7_no_parameter_is_fetched_or_opened(shared: Shared) -> None:
    canary = socket.create_server(("127.0.0.1", 0))
    canary.setblocking(False)
    forged = [value.format(port=canary.getsockname()[1], state=shared.folder / "state") for value in FORGED]
    shared.client.get("/health/live")
    own = (shared.client.base_url.host, shared.client.base_url.port)
    sockets = Sockets()
    sockets.watching = True
    asked = 0
    for place, answer in asked_with(shared, forged):
        asked += 1
        assert answer.status_code < 500, place
        assert "root:x:" not in answer.text, place
    sockets.watching = False
    assert asked > 150
    assert [address for address in sockets.connected if tuple(address[:2]) != own] == []
    assert sockets.opened == []
    with pytest.raises(BlockingIOError):
        canary.accept()
    canary.close()


def test_api7_the_query_engine_itself_cannot_reach_out(tmp_path: Path) -> None:
    lake, state = tmp_path / "lake", tmp_path / "state"
    for folder in (lake, state):
        folder.mkdir()
    (tmp_path / "outside.txt").write_text("secret")
    (lake / "link.txt").symlink_to(tmp_path / "outside.txt")
    for name in ("keys.sqlite", "cursor.key"):
        (state / name).write_text("secret")
    engine = Engine(
        [lake, state / "labels", state / "exports"], threads=1, memory_mb=256, spill_mb=16, spill_dir=state / "spill"
    )
    try:
        with engine.session() as session:
            for statement in (
                "SELECT * FROM read_text('/etc/passwd')",
                f"SELECT * FROM read_text('{state}/keys.sqlite')",
                f"SELECT * FROM read_blob('{state}/cursor.key')",
                f"SELECT * FROM read_text('{state}/exports/../keys.sqlite')",
                f"SELECT * FROM glob('{state}/*')",
                f"ATTACH '{state}/keys.sqlite' (TYPE sqlite)",
                f"SELECT * FROM read_text('{lake}/../outside.txt')",
                f"SELECT * FROM read_text('{lake}/link.txt')",
                "SELECT * FROM read_csv('http://127.0.0.1:9/x.csv')",
                "SELECT * FROM glob('/etc/*')",
                f"ATTACH '{tmp_path}/other.db'",
                f"COPY (SELECT 1) TO '{tmp_path}/copy.csv'",
                "INSTALL httpfs",
                "LOAD httpfs",
                "SET enable_external_access = true",
                "SET memory_limit = '100GB'",
            ):
                with pytest.raises(
                    Exception, match=r"(?i)permission|disabled|lock|cannot|not allowed|httpfs|not found|unable"
                ):
                    session.rows(statement, {})
    finally:
        engine.close()


# --- API8: misconfiguration ------------------------------------------------------------------------------------------


def test_api8_every_answer_has_the_security_headers(
    tmp_path: Path, posts: list[dict[str, Any]], make_client: MakeClient
) -> None:
    client = make_client(access={"requests_per_minute": 12})
    answers = [
        client.get(path)
        for path in ("/", "/docs", "/static/page.js", "/openapi.json", "/v1/search", "/v1/search?x=1", "/nothing")
    ]
    answers.append(client.get("/v1/search", headers={"authorization": "Bearer wrong"}))
    answers.append(client.get("/v1/search", headers={"host": "evil.example"}))
    answers.append(client.post("/v1/search"))
    answers += [client.get("/v1/search") for _ in range(12)]
    assert {answer.status_code for answer in answers} >= {200, 400, 401, 403, 404, 405, 429}
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"]
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers


def test_api8_the_pages_keep_their_own_policy(shared: Shared) -> None:
    client = shared.client
    for path in ("/", "/docs"):
        page = client.get(path).text
        assert not re.search(r"<script(?![^>]*\bsrc=)[^>]*>|\son\w+=|\sstyle=|<style|javascript:", page), path
        assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", page.replace("https://bsky.app", "")) or path == "/"
        for source in re.findall(r"(?:script|link|img)[^>]*?(?:src|href)=[\"']([^\"']+)", page):
            assert source.startswith("/"), source
            assert client.get(source).status_code == 200, source
    for script in ("page.js", "dom.js", "chart.js", "export.js", "docs.js"):
        assert not re.search(
            r"\beval\(|new Function|innerHTML\s*=|document\.write|insertAdjacentHTML",
            client.get(f"/static/{script}").text,
        )


def test_api8_errors_tell_nothing_of_the_inside(
    builder: LakeBuilder, posts: list[dict[str, Any]], make_client: MakeClient
) -> None:
    client = make_client()
    for file in builder.root.rglob("*.parquet"):
        file.write_bytes(b"damaged" * 100)
    seen = set()
    for path in ("/v1/search", "/v1/counts", "/v1/aggregate?by=lang", f"/v1/posts/{posts[0]['uri']}"):
        answer = client.get(path)
        seen.add(answer.status_code)
        assert answer.status_code >= 400
        for word in ("Traceback", "SELECT", "read_parquet", "duckdb", ".parquet", str(builder.root), 'File "'):
            assert word not in answer.text, (path, word)
        assert answer.json()["request_id"]


def test_api8_a_public_address_needs_keys_without_any_setting() -> None:
    from api.access.layer import keys_required

    for host in ("0.0.0.0", "::", "10.1.2.3", "service.example"):  # noqa: S104 - what is tested
        settings = ApiSettings(host=host)
        assert keys_required(settings.access, settings.host)
    assert not keys_required(ApiSettings().access, ApiSettings().host)


# --- API9: inventory -------------------------------------------------------------------------------------------------


def test_api9_everything_that_answers_is_known(shared: Shared) -> None:
    client = shared.client
    versioned = {path for _, path, _ in operations(client) if path.startswith("/v1/")}
    others = {path for _, path, _ in operations(client)} - versioned
    assert others <= {"/health/live", "/health/ready", "/search", "/export"}, "a new address outside of /v1"
    for method, path, item in operations(client):
        assert item.get("operationId"), (method, path)
        assert "429" in item["responses"] or required_scope(method.upper(), path) is None, (method, path)


# --- API10: unsafe use of what others send ---------------------------------------------------------------------------


def test_api10_hostile_texts_come_back_as_they_were(builder: LakeBuilder, make_client: MakeClient) -> None:
    hostile = [
        "<script>alert(1)</script>",
        "=cmd|' /C calc'!A0",
        "\u202eevil",
        "a\x00b",
        "'; DROP TABLE posts; --",
        "{{7*7}}",
    ]
    for text in hostile:
        builder.post(did(1), text)
        builder.tick()
    builder.commit()
    client = make_client()
    answer = client.get("/v1/search", params={"sort": "oldest"})
    assert [row["text"] for row in answer.json()["results"]] == hostile
    assert answer.headers["content-type"] == "application/json"


def test_injected_text_is_only_text(shared: Shared) -> None:
    before = shared.client.get("/v1/stats").json()["rows"]
    for place, answer in asked_with(shared, INJECTED):
        assert answer.status_code < 500, place
        assert "root:x:" not in answer.text, place
    for text in INJECTED[:2]:
        # Quoted, so that it is one phrase and not our query language.
        found = shared.client.get("/v1/search", params={"text": f'"{text}"'})
        assert found.json()["results"] == []
    assert shared.client.get("/v1/stats").json()["rows"] == before


def test_uploads_from_hostile_hands_are_answers(
    tmp_path: Path, posts: list[dict[str, Any]], client: httpx.Client
) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"did": [did(1)], "../../x": [1]}), sink)
    for body, kind in (
        (sink.getvalue(), "application/vnd.apache.parquet"),
        (b"did,v0\nfile:///etc/passwd,1\n", "text/csv"),
        (b"PAR1" + b"\xff" * 5000 + b"PAR1", "application/vnd.apache.parquet"),
    ):
        answer = client.put("/v1/labels/hostile", content=body, headers={"content-type": kind})
        assert answer.status_code == 400, answer.text
        assert str(tmp_path) not in answer.text
    assert [path.name for path in (tmp_path / "state" / "labels").iterdir() if path.suffix != ".sqlite"] == []
