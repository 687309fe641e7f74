"""The access layer around a small application: what passes, what is refused and how, what is logged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from api.access import AccessSettings, Scope, charge_bytes, install, principal
from api.access.keys import CreatedKey, KeyStore, create_key, revoke_key
from api.errors import MEDIA_TYPE, install_handlers

NOW = 1_700_000_000.0


class Clock:
    """A time that only moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Service:
    """The small application, its clock and a client per address."""

    def __init__(self, folder: Path, host: str, **settings: Any) -> None:
        self.clock = Clock()
        self.keys = folder / "keys.sqlite"
        self.app = FastAPI()
        install_handlers(self.app)

        @self.app.get("/v1/search")
        async def search(request: Request) -> JSONResponse:
            charge_bytes(request, int(request.headers.get("x-cost", "0")))
            who = principal(request)
            return JSONResponse(
                {"owner": who.owner, "address": request.client.host if request.client else None},
                headers={"Cache-Control": "public, max-age=5"},
            )

        @self.app.post("/v1/exports")
        async def export() -> JSONResponse:
            return JSONResponse({})

        @self.app.get("/health/live")
        async def live() -> JSONResponse:
            return JSONResponse({})

        @self.app.get("/")
        async def page() -> JSONResponse:
            return JSONResponse({})

        install(
            self.app,
            AccessSettings(**settings),
            host=host,
            state_dir=folder,
            wall=lambda: NOW + self.clock.now,
            clock=self.clock,
        )

    def key(self, *scopes: Scope, **more: Any) -> CreatedKey:
        return create_key(self.keys, name="Ada", scopes=frozenset(scopes), days=more.pop("days", None), now=NOW, **more)

    def request(
        self, method: str, path: str, *, token: str | None = None, client: str = "127.0.0.1", **headers: str
    ) -> httpx.Response:
        found = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            found["authorization"] = f"Bearer {token}"

        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, client=(client, 4711))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.request(method, path, headers=found)

        return asyncio.run(call())


Make = Callable[..., Service]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return lambda host="127.0.0.1", **settings: Service(tmp_path, host, **settings)


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """Checks the one error shape and returns the body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"/problems/{slug}"
    assert body["detail"]
    return body


def test_loopback_is_open_without_a_key(make: Make) -> None:
    service = make()
    assert service.request("GET", "/v1/search").json() == {"owner": "anonymous", "address": "127.0.0.1"}
    assert service.request("POST", "/v1/exports").status_code == 200


@pytest.mark.parametrize("how", [{"host": "0.0.0.0"}, {"require_key": True}, {"trusted_proxies": ("127.0.0.1",)}])  # noqa: S104
def test_elsewhere_data_need_a_key_and_pages_do_not(make: Make, how: dict[str, Any]) -> None:
    service = make(**how)
    refused = service.request("GET", "/v1/search")
    assert "keys create" in problem(refused, 401, "unauthorized")["detail"]
    assert refused.headers["www-authenticate"].startswith("Bearer")
    problem(service.request("GET", "/v1/nothing/here"), 401, "unauthorized")
    assert service.request("GET", "/").status_code == 200
    assert service.request("GET", "/health/live").status_code == 200
    key = service.key(Scope.READ)
    assert service.request("GET", "/v1/search", token=key.token).json()["owner"] == key.info.id


def test_a_key_opens_what_its_scopes_say(make: Make) -> None:
    service = make(require_key=True)
    reader, admin = service.key(Scope.READ), service.key(Scope.ADMIN)
    body = problem(service.request("POST", "/v1/exports", token=reader.token), 403, "forbidden")
    assert "`export`" in body["detail"]
    assert service.request("POST", "/v1/exports", token=admin.token).status_code == 200


@pytest.mark.parametrize("how", ["unknown", "cut", "basic", "revoked", "expired"])
def test_a_wrong_key_is_refused_even_where_none_is_needed(make: Make, how: str) -> None:
    service = make(key_cache_seconds=0)
    key = service.key(Scope.READ, days=1)
    headers = {"token": key.token}
    if how == "unknown":
        headers["token"] = Service(service.keys.parent / "other", "127.0.0.1").key(Scope.READ).token
    elif how == "cut":
        headers["token"] = key.token[:-3]
    elif how == "basic":
        headers = {"authorization": f"Basic {key.token}"}
    elif how == "revoked":
        assert service.request("GET", "/v1/search", token=key.token).status_code == 200
        revoke_key(service.keys, key.info.id, now=NOW)
    else:
        service.clock.now = 86_400
    refused = service.request("GET", "/v1/search", **headers)
    problem(refused, 401, "unauthorized")
    assert key.token not in refused.text


def test_a_revocation_is_noticed_within_the_cache_time(make: Make) -> None:
    service = make(require_key=True, key_cache_seconds=5)
    key = service.key(Scope.READ)
    assert service.request("GET", "/v1/search", token=key.token).status_code == 200
    revoke_key(service.keys, key.info.id, now=NOW)
    service.clock.now = 5.1
    problem(service.request("GET", "/v1/search", token=key.token), 401, "unauthorized")


def test_use_is_noted_once_a_minute(make: Make) -> None:
    service = make()
    key = service.key(Scope.READ)

    def last_used() -> float | None:
        found = KeyStore(service.keys).get(key.info.id)
        assert found is not None
        return found.last_used

    assert last_used() is None
    for now, noted in ((0.0, NOW), (30.0, NOW), (60.0, NOW + 60)):
        service.clock.now = now
        assert service.request("GET", "/v1/search", token=key.token).status_code == 200
        assert last_used() == noted


def test_requests_are_limited_by_key_and_by_address(make: Make) -> None:
    service = make(requests_per_minute=3)
    key = service.key(Scope.READ)
    for left in (2, 1, 0):
        answer = service.request("GET", "/v1/search")
        assert f'"requests";r={left};t=' in answer.headers["ratelimit"]
        assert '"requests";q=3;w=60' in answer.headers["ratelimit-policy"]
    refused = service.request("GET", "/v1/search")
    body = problem(refused, 429, "rate-limited")
    assert body["limit"] == 3
    assert refused.headers["retry-after"] == str(body["retry_after"]) == "20"
    assert service.request("GET", "/v1/search", token=key.token).status_code == 200
    assert service.request("GET", "/v1/search", client="192.0.2.9").status_code == 200
    assert service.request("GET", "/health/live").status_code == 200
    service.clock.now = 20.0
    assert service.request("GET", "/v1/search").status_code == 200


def test_a_key_may_have_limits_of_its_own(make: Make) -> None:
    service = make(requests_per_minute=1)
    key = service.key(Scope.READ, requests_per_minute=3)
    statuses = [service.request("GET", "/v1/search", token=key.token).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]


def test_bytes_scanned_are_limited_by_day(make: Make) -> None:
    service = make(bytes_per_day=1000)
    assert service.request("GET", "/v1/search", x_cost="400").status_code == 200
    answer = service.request("GET", "/v1/search", x_cost="900")
    assert answer.status_code == 200, "a query larger than what is left runs once"
    refused = service.request("GET", "/v1/search", x_cost="1")
    assert "1000 bytes a day" in problem(refused, 429, "rate-limited")["detail"]
    service.clock.now = float(refused.headers["retry-after"])
    assert service.request("GET", "/v1/search", x_cost="1").status_code == 200


def test_limits_of_zero_are_none(make: Make) -> None:
    service = make(requests_per_minute=0, bytes_per_day=0)
    for _ in range(3):
        answer = service.request("GET", "/v1/search", x_cost="1000000")
        assert answer.status_code == 200
        assert "ratelimit" not in answer.headers


def test_guessing_keys_is_slowed_down(make: Make) -> None:
    service = make(require_key=True, failures_per_minute=3)
    key = service.key(Scope.READ)
    statuses = [service.request("GET", "/v1/search", token="bpe_wrong").status_code for _ in range(4)]
    assert statuses == [401, 401, 401, 429]
    assert service.request("GET", "/v1/search", token=key.token).status_code == 429
    assert service.request("GET", "/v1/search", token=key.token, client="192.0.2.9").status_code == 200


def test_a_key_in_the_address_is_refused_with_advice(make: Make) -> None:
    service = make()
    key = service.key(Scope.READ)
    for path in (f"/v1/search?key={key.token}", f"/v1/{key.token}"):
        body = problem(service.request("GET", path), 400, "unknown-parameter")
        assert "revoked" in body["detail"]


def test_a_foreign_host_name_is_refused_while_the_service_is_open(make: Make) -> None:
    service = make()
    problem(service.request("GET", "/v1/search", host="evil.example"), 403, "forbidden")
    named = make(allowed_hosts=("lab.example",))
    assert named.request("GET", "/v1/search", host="lab.example:8080").status_code == 200
    problem(named.request("GET", "/v1/search", host="127.0.0.1"), 403, "forbidden")


def test_a_page_of_another_site_cannot_change_anything(make: Make) -> None:
    service = make()
    problem(service.request("POST", "/v1/exports", origin="https://evil.example"), 403, "forbidden")
    assert (
        "access-control-allow-origin" not in service.request("GET", "/v1/search", origin="https://evil.example").headers
    )


def test_cors_lets_listed_origins_read_and_ask(make: Make) -> None:
    service = make(cors_origins=("https://lab.example",), require_key=True)
    asked = {"origin": "https://lab.example", "access_control_request_method": "POST"}
    answer = service.request("OPTIONS", "/v1/exports", **asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://lab.example"
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    refused = service.request("GET", "/v1/search", origin="https://lab.example")
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://lab.example"
    assert "origin" in refused.headers["vary"].lower()
    problem(service.request("OPTIONS", "/v1/exports", **(asked | {"origin": "https://evil.example"})), 403, "forbidden")


def test_headers_are_capped(make: Make) -> None:
    service = make(header_bytes=1024)
    problem(service.request("GET", "/v1/search", x_long="a" * 2000), 413, "too-large")


def test_answers_to_a_key_are_not_shared_by_caches(make: Make) -> None:
    service = make()
    key = service.key(Scope.READ)
    assert service.request("GET", "/v1/search").headers["cache-control"] == "public, max-age=5"
    answer = service.request("GET", "/v1/search", token=key.token)
    assert answer.headers["cache-control"] == "private, max-age=5"
    assert "authorization" in answer.headers["vary"].lower()


def test_the_client_behind_a_trusted_proxy_is_told_apart(make: Make) -> None:
    service = make(trusted_proxies=("10.0.0.1",), allowed_hosts=("127.0.0.1",))
    key = service.key(Scope.READ)
    answer = service.request("GET", "/v1/search", token=key.token, client="10.0.0.1", x_forwarded_for="198.51.100.7")
    assert answer.json()["address"] == "198.51.100.7"


def test_the_audit_log_tells_who_but_not_what(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    service = make(require_key=True)
    key = service.key(Scope.READ)
    with caplog.at_level(logging.DEBUG):
        service.request("GET", "/v1/search?text=my+secret+topic&limit=5", token=key.token, x_cost="12")
        service.request("GET", "/v1/search?text=my+secret+topic")
        service.request("GET", f"/v1/search?key={key.token}")
    records = [record.__dict__ for record in caplog.records if record.name == "explorer.audit"]
    assert [record["status"] for record in records] == [200, 401, 400]
    found = records[0]
    assert (found["key"], found["route"], found["bytes_scanned"]) == (key.info.id, "/v1/search", 12)
    assert found["parameters"] == ["limit", "text"]
    assert found["address"] == "127.0.0.0/24"
    assert records[1]["refusal"] == "unauthorized"
    for record in caplog.records:
        # The test's own HTTP client logs addresses too.
        if not record.name.startswith("explorer"):
            continue
        text = repr(record.__dict__)
        assert "secret" not in text
        assert key.token[13:40] not in text


def test_the_audit_log_holds_queries_only_by_setting(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    service = make(audit_queries=True, audit_addresses="none")
    with caplog.at_level(logging.INFO, "explorer.audit"):
        service.request("GET", "/v1/search?text=topic")
    record = caplog.records[-1].__dict__
    assert record["query"] == "text=topic"
    assert "address" not in record


def test_a_damaged_key_file_never_opens_the_service(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    service = make(require_key=True)
    key = service.key(Scope.READ)
    service.keys.write_bytes(b"damaged" * 1000)
    answer = service.request("GET", "/v1/search", token=key.token)
    problem(answer, 503, "unavailable")
    assert str(service.keys) not in answer.text
    assert "key file" in caplog.text
