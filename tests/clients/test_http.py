"""Retries of the Python client, without a network and without waiting."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from post_explorer_client.errors import ConnectionFailed, NotAllowed, ProblemError, RateLimited, ServiceError
from post_explorer_client.http import Http, Retry

Step = Callable[[httpx.Request], httpx.Response]


def busy(status: int, **headers: str) -> Step:
    body = {"type": "/problems/over-capacity", "title": "busy", "detail": "come back", "status": status}
    return lambda request: httpx.Response(
        status, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def broken(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("reset", request=request)


def away(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def good(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"ok": True})


class Script:
    """A service that answers by a script, and what the client did."""

    def __init__(self, *steps: Step, retry: Retry | None = None) -> None:
        self.steps = list(steps)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []
        self.now = 0.0
        self.http = Http(
            "http://service.example",
            key="bpe_secret",
            timeout=5,
            retry=retry or Retry(),
            transport=httpx.MockTransport(self._answer),
            user_agent="test",
            sleep=self._sleep,
            clock=lambda: self.now,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.steps.pop(0)(request)

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


def test_what_is_temporary_is_tried_again() -> None:
    script = Script(busy(503), busy(429, retry_after="7"), broken, away, good)
    assert script.http.json("GET", "/x") == {"ok": True}
    assert len(script.requests) == 5
    assert script.waits[1] == 7
    assert all(0 < wait <= 7 for wait in script.waits)


def test_attempts_are_bounded() -> None:
    script = Script(*[busy(503)] * 10, retry=Retry(attempts=4))
    with pytest.raises(ServiceError, match="come back"):
        script.http.json("GET", "/x")
    assert len(script.requests) == 4


def test_time_is_bounded() -> None:
    script = Script(*[busy(503)] * 100, retry=Retry(attempts=100, seconds=10))
    with pytest.raises(ServiceError):
        script.http.json("GET", "/x")
    assert sum(script.waits) <= 10.001


def test_a_long_wait_is_left_to_the_caller() -> None:
    script = Script(busy(429, retry_after="3600"))
    with pytest.raises(RateLimited) as caught:
        script.http.json("GET", "/x")
    assert caught.value.retry_after == 3600
    assert script.waits == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_what_will_not_change_is_not_tried_again(status: int) -> None:
    script = Script(busy(status))
    with pytest.raises(ProblemError) as caught:
        script.http.json("GET", "/x")
    assert caught.value.status == status


def test_a_request_that_may_have_been_done_is_not_repeated() -> None:
    script = Script(broken)
    with pytest.raises(ConnectionFailed, match="broke"):
        script.http.json("POST", "/x", body={})
    with pytest.raises(ServiceError):
        Script(busy(502)).http.json("POST", "/x", body={})
    for first in (away, busy(503), busy(429)):
        assert Script(first, good).http.json("POST", "/x", body={}) == {"ok": True}
    again = Script(broken, good)
    assert again.http.json("POST", "/x", body={}, headers={"Idempotency-Key": "a"}) == {"ok": True}


def test_the_key_does_not_follow_a_redirect() -> None:
    script = Script(lambda request: httpx.Response(302, headers={"location": "http://other.example/"}))
    script.http.request("GET", "/x")
    assert [request.url.host for request in script.requests] == ["service.example"]


def test_an_error_without_a_problem_body_is_still_readable() -> None:
    script = Script(lambda request: httpx.Response(403, text="<html>proxy says no</html>"))
    with pytest.raises(NotAllowed, match="proxy says no"):
        script.http.json("GET", "/x")
    script = Script(lambda request: httpx.Response(400, json=["odd"]))
    with pytest.raises(ProblemError, match="400"):
        script.http.json("GET", "/x")
