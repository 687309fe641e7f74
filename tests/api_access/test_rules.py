"""The pure rules of access: scopes, addresses, hosts, origins, buckets."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.datastructures import Headers

from api.access.addresses import client_address, coarse, limit_key, networks
from api.access.buckets import Buckets, Quota
from api.access.config import AccessSettings
from api.access.layer import keys_required
from api.access.origins import answer_headers, host_allowed, origin_allowed
from api.access.scopes import Scope, allows, is_loopback, required_scope


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/", None),
        ("GET", "/health/live", None),
        ("GET", "/static/app.js", None),
        ("GET", "/healthy", Scope.READ),
        ("GET", "/v1/search", Scope.READ),
        ("GET", "/whatever/comes/later", Scope.READ),
        ("POST", "/v1/exports", Scope.EXPORT),
        ("GET", "/v1/exports/1/file", Scope.EXPORT),
        ("GET", "/export", Scope.EXPORT),
        ("GET", "/v1/labels", Scope.READ),
        ("PUT", "/v1/labels/mood", Scope.LABELS),
        ("DELETE", "/v1/labels/mood", Scope.LABELS),
        ("GET", "/v1/admin/keys", Scope.ADMIN),
    ],
)
def test_what_an_address_needs(method: str, path: str, needed: Scope | None) -> None:
    assert required_scope(method, path) is needed


@given(st.text(max_size=40))
def test_nothing_below_v1_is_open(path: str) -> None:
    assert required_scope("GET", "/v1/" + path) is not None


def test_admin_covers_every_scope() -> None:
    assert all(allows(frozenset({Scope.ADMIN}), scope) for scope in Scope)
    assert not allows(frozenset({Scope.READ}), Scope.EXPORT)


LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"]
REACHABLE = ["0.0.0.0", "::", "192.168.1.5", "example.org", "localhost.example.org", ""]  # noqa: S104 - what is tested


@pytest.mark.parametrize(("host", "expected"), [(h, True) for h in LOOPBACK] + [(h, False) for h in REACHABLE])
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
    assert keys_required(AccessSettings(), host) is not expected


def test_a_setting_or_a_proxy_makes_keys_required_on_loopback_too() -> None:
    assert keys_required(AccessSettings(require_key=True), "127.0.0.1")
    assert keys_required(AccessSettings(trusted_proxies=("127.0.0.1",)), "127.0.0.1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "expected"),
    [
        ("203.0.113.9", "", (), "203.0.113.9"),
        ("203.0.113.9", "198.51.100.1", (), "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1", ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, 198.51.100.1, 10.0.0.7", ("10.0.0.0/8",), "198.51.100.1"),
        ("10.0.0.1", "198.51.100.1:4711", ("10.0.0.1",), "198.51.100.1"),
        ("10.0.0.1", "[2001:db8::1]:80", ("10.0.0.1",), "2001:db8::1"),
        ("10.0.0.1", "198.51.100.1, nonsense", ("10.0.0.1",), "10.0.0.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", ("10.0.0.1",), "198.51.100.1"),
        (None, "198.51.100.1", ("10.0.0.1",), "local"),
    ],
)
def test_the_client_behind_proxies(peer: str | None, forwarded: str, trusted: tuple[str, ...], expected: str) -> None:
    assert client_address(peer, forwarded, networks(trusted)) == expected


@given(st.text(max_size=200))
def test_an_untrusted_peer_cannot_choose_its_address(forwarded: str) -> None:
    assert client_address("203.0.113.9", forwarded, networks(("10.0.0.0/8",))) == "203.0.113.9"


def test_an_ipv6_client_is_its_network() -> None:
    assert limit_key("2001:db8:1:2::1") == limit_key("2001:db8:1:2:ffff::9") != limit_key("2001:db8:1:3::1")
    assert limit_key("203.0.113.9") == "203.0.113.9"
    assert coarse("203.0.113.9") == "203.0.113.0/24"
    assert coarse("2001:db8:1:2::1") == "2001:db8:1::/48"


OWN = ["localhost:8080", "127.0.0.1", "[::1]:8080"]
FOREIGN = ["evil.example", "127.0.0.1.evil.example", "", None]


@pytest.mark.parametrize(("host", "expected"), [(h, True) for h in OWN] + [(h, False) for h in FOREIGN])
def test_an_open_service_answers_to_loopback_names_only(host: str | None, expected: bool) -> None:
    assert host_allowed(host, frozenset(), loopback_only=True) is expected
    assert host_allowed(host, frozenset(), loopback_only=False)


def test_foreign_pages_may_read_but_not_change() -> None:
    foreign = Headers({"host": "localhost:8080", "origin": "https://evil.example"})
    assert origin_allowed("GET", foreign, ())
    assert not origin_allowed("POST", foreign, ())
    assert origin_allowed("POST", foreign, ("https://evil.example",))
    assert not origin_allowed("POST", foreign, ("*",))
    assert not origin_allowed("POST", Headers({"host": "localhost:8080", "origin": "null"}), ())
    assert origin_allowed("POST", Headers({"host": "localhost:8080", "origin": "http://localhost:8080"}), ())
    assert origin_allowed("POST", Headers({"host": "localhost:8080"}), ())


def test_cors_never_allows_credentials_and_any_origin_only_reads() -> None:
    assert answer_headers("https://a.example", "GET", ()) == {}
    assert answer_headers("https://a.example", "POST", ("*",)) == {}
    for method in ("GET", "POST"):
        found = answer_headers("https://a.example", method, ("https://a.example", "*"))
        assert found["Access-Control-Allow-Origin"] == "https://a.example"
        assert "Access-Control-Allow-Credentials" not in found


@pytest.mark.parametrize(
    "wrong", [{"cors_origins": ["lab.example"]}, {"cors_origins": ["https://a/b"]}, {"trusted_proxies": ["proxy"]}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, list[str]]) -> None:
    with pytest.raises(ValidationError, match="write"):
        AccessSettings.model_validate(wrong)


steps = st.lists(st.tuples(st.floats(0, 30), st.sampled_from("abc"), st.integers(1, 5)), max_size=60)


@given(steps)
def test_no_client_gets_more_than_its_quota_in_any_window(found: list[tuple[float, str, int]]) -> None:
    quota = Quota(10, 60)
    buckets = Buckets(10)
    now, granted = 0.0, []
    for passed, client, cost in found:
        now += passed
        decision = buckets.take(client, quota, cost, now)
        if decision.allowed:
            granted.append((now, client, cost))
        else:
            assert decision.retry_after >= 1
            assert buckets.peek(client, quota, now + decision.retry_after).remaining >= cost
    for start, client, _ in granted:
        # A full bucket and what flows in during the window.
        spent = sum(cost for at, who, cost in granted if who == client and start <= at < start + 60)
        assert spent <= 20


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 40)), max_size=80))
def test_memory_is_bounded_and_nobody_gains_by_being_forgotten(found: list[tuple[float, int]]) -> None:
    quota = Quota(2, 60)
    buckets = Buckets(5)
    now, granted = 0.0, []
    for passed, client in found:
        now += passed
        if buckets.take(str(client), quota, 1, now).allowed:
            granted.append((now, client))
        assert len(buckets) <= 6
    for start, client in granted:
        assert sum(1 for at, who in granted if who == client and start <= at < start + 60) <= 4 + 2


def test_debt_is_paid_off_before_the_next_query() -> None:
    quota, buckets = Quota(100, 100), Buckets(10)
    assert buckets.charge("a", quota, 150, 0).allowed
    refused = buckets.charge("a", quota, 1, 10)
    assert not refused.allowed
    assert not buckets.charge("a", quota, 1, 49).allowed
    assert buckets.charge("a", quota, 1, 10 + refused.retry_after).allowed
    assert buckets.charge("b", quota, 1, 0).allowed


def test_a_quota_of_zero_counts_nothing() -> None:
    buckets = Buckets(1)
    assert all(buckets.take("a", Quota(0, 60), 1e9, 0).allowed for _ in range(3))
    assert len(buckets) == 0


def test_settings_and_keys_load_without_a_web_framework() -> None:
    wanted = "import sys, api.access.config, api.access.keys, api.labels.config; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", wanted], capture_output=True, text=True, check=True).stdout.split()
    assert not {"fastapi", "starlette", "duckdb", "pyarrow", "httpx"} & set(loaded)
