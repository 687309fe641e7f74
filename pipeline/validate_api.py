"""How fast the API answers what the lab asks of it: one-day text searches, simple answers, a table of 1,000 rows, ten at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import httpx

from lake.manifest import HOUR_US
from pipeline.gates import Gate, percentile
from pipeline.validate import Span

TEXT_SECONDS: Final = 30.0
"""The lab's limit for a text query over one day."""
SIMPLE_SECONDS: Final = 5.0
"""The lab's limit for a typical answer."""
CSV_SECONDS: Final = 2.0
"""The lab's limit for 1,000 rows of CSV."""
AT_ONCE: Final = 10
WORDS: Final = ("the", "love", "music OR film", '"good morning"', "zeitgeist", "news NOT sport")
"""Common words, a choice, a phrase, a rare word, an exclusion; each is asked for newest and oldest first."""


def api_gates(api_url: str, span: Span) -> Iterator[Gate]:
    """The gates of a running API over the last day of `span`. May take a minute."""
    day = {"start": _iso(max(span.start_us, span.end_us - 24 * HOUR_US)), "end": _iso(span.end_us)}
    with httpx.Client(base_url=f"{api_url}/v1", timeout=TEXT_SECONDS) as client:
        searches = [
            ("search", {"text": word, "limit": "50", "sort": sort, **day})
            for word in WORDS
            for sort in ("newest", "oldest")
        ]
        times, problem = _ask_all(client, searches)
        yield _gate("text search over one day", times, problem, TEXT_SECONDS)
        times, problem = _ask_all(client, _simple(client, day))
        yield _gate("simple answers", times, problem, SIMPLE_SECONDS)
        times, problem = _ask_all(client, [("search", {"limit": "1000", **day})] * 3, {"Accept": "text/csv"})
        yield _gate("1,000 rows of CSV", times, problem, CSV_SECONDS)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda question: _ask_all(client, [question]), searches[:AT_ONCE]))
        times = [seconds for found, _ in answers for seconds in found]
        yield _gate(
            f"{AT_ONCE} text searches at once", times, next((why for _, why in answers if why), ""), TEXT_SECONDS
        )


def _simple(client: httpx.Client, day: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Questions as a page asks them, among them for a post and an author that are there."""
    questions: list[tuple[str, dict[str, str]]] = [
        ("stats", {}),
        ("collections", {}),
        ("counts", {"interval": "hour", **day}),
        ("search", {"limit": "50"}),
    ]
    try:
        results: list[dict[str, Any]] = client.get("search", params={"limit": "5", **day}).json()["results"]
    except (httpx.HTTPError, ValueError, KeyError):
        results = []
    for found in results:
        questions += [(f"posts/{found['uri']}", {}), (f"authors/{found['did']}", {})]
    return questions


def _ask_all(
    client: httpx.Client, questions: list[tuple[str, dict[str, str]]], headers: dict[str, str] | None = None
) -> tuple[list[float], str]:
    """Seconds of every good answer, and what was wrong with the first other one."""
    times: list[float] = []
    problem = ""
    for path, parameters in questions:
        begun = time.monotonic()
        try:
            answer = client.get(path, params=parameters, headers=headers)
        except httpx.HTTPError as error:
            problem = problem or f"{path}: {type(error).__name__} {error}"
            continue
        if answer.status_code == 200:
            times.append(time.monotonic() - begun)
        else:
            problem = problem or f"{path}: status {answer.status_code} {answer.text[:200]}"
    return times, problem


def _gate(name: str, times: list[float], problem: str, most: float) -> Gate:
    slowest = max(times, default=float("nan"))
    measured = f"p50 {percentile(times, 0.5):.2f} s, p95 {percentile(times, 0.95):.2f} s, slowest {slowest:.2f} s of {len(times)}"
    return Gate(name, measured, f"≤ {most:g} s", not problem and bool(times) and slowest <= most, problem)


def _iso(time_us: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_us // 1_000_000))
