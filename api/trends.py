"""What rises: hashtags, domains, languages or mentioned accounts that are more frequent now than they were before."""
# ruff: noqa: S608 - statements are made of constants, names from enumerations, and names of bound values

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from api.aggregates import Group, group_expression
from api.engine import Session
from api.matches import matches
from api.posts_query import Selection, prepare
from api.relation import Lake
from api.snapshots import Scan
from api.times import to_datetime


class TrendKey(StrEnum):
    """What can trend."""

    HASHTAG = "hashtag"
    DOMAIN = "domain"
    MENTION = "mention"
    LANG = "lang"


@dataclass(frozen=True)
class TrendPlan:
    """Compares the posts of [split, end) with those of [start, split), which `selection` has as its range."""

    scan: Scan
    selection: Selection
    key: TrendKey
    start_us: int
    split_us: int
    end_us: int
    limit: int
    min_count: int


def run_trends(session: Session, lake: Lake, plan: TrendPlan) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The keys whose share grew most, by log-likelihood ratio; and the posts of both stretches."""
    if not plan.scan.files:
        return [], {"posts": 0, "baseline_posts": 0}
    source = prepare(session, lake, plan.scan, plan.selection)
    key = group_expression(Group(plan.key), "time")
    of = matches(session, lake, plan.scan, source, f"r.did, r.time, {key}")
    bound = of.bound
    split = bound.bind(to_datetime(plan.split_us))
    totals = session.rows(
        f"SELECT count(*) FILTER (r.time >= {split}), count(*) FILTER (r.time < {split})"
        f" FROM {of.relation} WHERE {of.condition}",
        bound.values,
    )
    posts, baseline = int(totals[0][0]), int(totals[0][1])
    least = bound.bind(plan.min_count)
    statement = (
        f"WITH keyed AS (SELECT r.did AS author, r.time >= {split} AS recent, {key} AS key"
        f" FROM {of.relation} WHERE {of.condition})"
        " SELECT key, count(*) FILTER (recent) AS count, count(*) FILTER (NOT recent) AS baseline,"
        " count(DISTINCT author) FILTER (recent) AS authors FROM keyed WHERE key IS NOT NULL"
        f" GROUP BY key HAVING count(*) FILTER (recent) >= {least}"
    )
    rows = session.rows(statement, bound.values)
    found = []
    for key, count, before, authors in rows:
        share, share_before = count / max(1, posts), before / max(1, baseline)
        if share <= share_before:
            continue
        found.append(
            {
                "key": key,
                "count": count,
                "authors": authors,
                "baseline_count": before,
                "growth": round(share / share_before, 3) if before else None,
                "score": round(log_likelihood(count, posts, before, baseline), 3),
            }
        )
    found.sort(key=lambda row: (-row["score"], row["key"]))
    return found[: plan.limit], {"posts": posts, "baseline_posts": baseline}


def log_likelihood(count: int, total: int, before: int, total_before: int) -> float:
    """Dunning's G² of two frequencies: how surprising `count` of `total` is after `before` of `total_before`."""
    whole = total + total_before
    if not whole:
        return 0.0
    rate = (count + before) / whole
    score = 0.0
    for observed, expected in ((count, total * rate), (before, total_before * rate)):
        if observed and expected:
            score += observed * math.log(observed / expected)
    for observed, expected in (
        (total - count, total * (1 - rate)),
        (total_before - before, total_before * (1 - rate)),
    ):
        if observed > 0 and expected > 0:
            score += observed * math.log(observed / expected)
    return max(0.0, 2 * score)
