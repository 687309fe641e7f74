"""Counting posts: over time, and by what they have in common. Runs on worker threads."""
# ruff: noqa: S608 - statements are made of constants, names from enumerations, and names of bound values

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from api.engine import Session
from api.errors import bad_parameter
from api.filters import PostFilters, TimeRange
from api.labels.sql import LabelColumn, label_join
from api.matches import matches
from api.posts_query import Reader, Selection, prepare
from api.relation import Lake
from api.snapshots import Scan
from api.sql import clock_column
from api.times import format_time, to_datetime, to_micros


class Interval(StrEnum):
    """Width of a bucket of time; weeks start on Monday, all in UTC."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_MICROS: Final = {
    Interval.MINUTE: 60_000_000,
    Interval.HOUR: 3_600_000_000,
    Interval.DAY: 86_400_000_000,
    Interval.WEEK: 7 * 86_400_000_000,
    Interval.MONTH: 28 * 86_400_000_000,
}
MAX_BUCKETS: Final = 10_000


def default_interval(start_us: int, end_us: int) -> Interval:
    """Minutes for up to three hours, hours for up to a week, else days."""
    width = end_us - start_us
    if width <= 3 * _MICROS[Interval.HOUR]:
        return Interval.MINUTE
    return Interval.HOUR if width <= _MICROS[Interval.WEEK] else Interval.DAY


def check_buckets(interval: Interval, start_us: int, end_us: int) -> None:
    """ApiError 422 when the range has too many buckets of this width."""
    count = (end_us - start_us) // _MICROS[interval] + 1
    if count > MAX_BUCKETS:
        raise bad_parameter(
            "interval", f"the range has {count} buckets of a {interval}, {MAX_BUCKETS} are allowed: take a wider one"
        )


def bucket_start(moment: datetime, interval: Interval) -> datetime:
    """The start of the bucket that holds a naive UTC time."""
    match interval:
        case Interval.MINUTE:
            return moment.replace(second=0, microsecond=0)
        case Interval.HOUR:
            return moment.replace(minute=0, second=0, microsecond=0)
        case Interval.DAY | Interval.WEEK:
            day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
            return day if interval is Interval.DAY else day - timedelta(days=day.weekday())
        case Interval.MONTH:
            return moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def next_bucket(start: datetime, interval: Interval) -> datetime:
    """The start of the bucket after the one that starts here."""
    if interval is Interval.MONTH:
        return start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return start + timedelta(microseconds=_MICROS[interval])


@dataclass(frozen=True)
class Bucket:
    """Posts of one stretch of time; `all_posts` and `authors` are None unless asked for."""

    start: datetime
    count: int
    authors: int | None
    all_posts: int | None

    def json(self) -> dict[str, Any]:
        """The member of `counts`."""
        found: dict[str, Any] = {"start": format_time(to_micros(self.start)), "count": self.count}
        if self.authors is not None:
            found["authors"] = self.authors
        if self.all_posts is not None:
            found["all_posts"] = self.all_posts
            found["share"] = self.count / self.all_posts if self.all_posts else None
        return found


@dataclass(frozen=True)
class CountPlan:
    """What to count: selected posts between two times, by `interval`. `background`: where all posts are counted too, for shares
    (None = not)."""

    scan: Scan
    selection: Selection
    interval: Interval
    start_us: int
    end_us: int
    authors: bool
    background: Scan | None = None


def run_counts(
    session: Session, lake: Lake, plan: CountPlan, rolled: Mapping[int, int] | None = None
) -> tuple[list[Bucket], int | None]:
    """Every bucket of the range in order, also the empty ones, and the distinct authors of the whole range if they are asked for.
    `rolled`: counts of hours that are not in `plan.scan`."""
    matching, people = _by_bucket(session, lake, plan, plan.scan, plan.selection)
    for hour_us, count in (rolled or {}).items():
        bucket = bucket_start(to_datetime(hour_us), plan.interval)
        known, authors = matching.get(bucket, (0, 0))
        matching[bucket] = (known + count, authors)
    background = None
    if plan.background is not None:
        everyone = replace(plan, authors=False)
        background, _ = _by_bucket(session, lake, everyone, plan.background, _unfiltered(plan.selection))
    buckets = []
    start = bucket_start(to_datetime(plan.start_us), plan.interval)
    end = to_datetime(plan.end_us)
    while start < end:
        count, authors = matching.get(start, (0, 0))
        buckets.append(
            Bucket(
                start,
                count,
                authors if plan.authors else None,
                None if background is None else background.get(start, (0, 0))[0],
            )
        )
        start = next_bucket(start, plan.interval)
    return buckets, people if plan.authors else None


def _unfiltered(selection: Selection) -> Selection:
    """The same range, clock and treatment of re-downloads, with every post in it."""
    kept = {name: getattr(selection.filters, name) for name in (*TimeRange.model_fields, "resync")}
    return Selection(PostFilters.model_construct(**kept))


def _by_bucket(
    session: Session, lake: Lake, plan: CountPlan, scan: Scan, selection: Selection
) -> tuple[dict[datetime, tuple[int, int]], int]:
    """Posts and authors of each bucket, and of all together."""
    if not scan.files:
        return {}, 0
    source = prepare(session, lake, scan, selection, reader=Reader.ALL)
    selected = f"date_trunc('{plan.interval}', r.{clock_column(selection.filters.clock)}) AS bucket, count(*)"
    selected += ", count(DISTINCT r.did)" if plan.authors else ", 0"
    # One pass counts the authors of each bucket and of the range.
    grouped = "GROUPING SETS ((bucket), ())" if plan.authors else "bucket"
    of = matches(session, lake, scan, source, selected)
    rows = session.rows(
        f"SELECT {selected}, grouping(bucket) FROM {of.relation} WHERE {of.condition} GROUP BY {grouped}",
        of.bound.values,
    )
    found = {_naive(bucket): (count, authors) for bucket, count, authors, _ in rows if bucket is not None}
    return found, next((authors for _, _, authors, every in rows if every), 0)


def _naive(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime(value.year, value.month, value.day)  # noqa: DTZ001


LABEL: Final = "label:"
"""How a key or a column that is a label table begins."""


class Group(StrEnum):
    """What posts can be grouped by. A post counts once for each of its values; without any it counts under null."""

    LANG = "lang"
    HASHTAG = "hashtag"
    DOMAIN = "domain"
    MENTION = "mention"
    SELF_LABEL = "self_label"
    AUTHOR = "author"
    MEDIA = "media"
    EMBED = "embed"
    OPERATION = "operation"
    REPLY = "reply"
    QUOTE = "quote"
    REPLY_TO_AUTHOR = "reply_to_author"
    QUOTED_AUTHOR = "quoted_author"
    HOUR_OF_DAY = "hour_of_day"
    WEEKDAY = "weekday"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


_LISTS: Final = {
    Group.LANG: "list_distinct(list_transform(langs, lambda tag: lower(tag)))",
    Group.HASHTAG: "hashtags",
    Group.DOMAIN: "domains",
    Group.MENTION: "mentions",
    Group.SELF_LABEL: "self_labels",
}
_SCALARS: Final = {
    Group.AUTHOR: "r.did",
    Group.MEDIA: "media_kind",
    Group.EMBED: "embed_type",
    Group.OPERATION: "operation",
    Group.REPLY: "reply_parent_did IS NOT NULL OR reply_parent_uri_text IS NOT NULL",
    Group.QUOTE: "quote_did IS NOT NULL OR quote_uri_text IS NOT NULL",
    Group.REPLY_TO_AUTHOR: "coalesce(reply_parent_did, string_split(reply_parent_uri_text, '/')[3])",
    Group.QUOTED_AUTHOR: "coalesce(quote_did, string_split(quote_uri_text, '/')[3])",
    Group.HOUR_OF_DAY: "hour(r.{clock})",
    Group.WEEKDAY: "isodow(r.{clock})",
}
_BUCKETS: Final = (Group.MINUTE, Group.HOUR, Group.DAY, Group.WEEK, Group.MONTH)


def group_expression(group: Group, clock: str) -> str:
    """The SQL expression of a group's key."""
    if group in _BUCKETS:
        return f"date_trunc('{group}', r.{clock})"
    if group in _LISTS:
        values = _LISTS[group]
        return f"unnest(CASE WHEN len({values}) > 0 THEN {values} ELSE [NULL] END)"
    return _SCALARS[group].replace("{clock}", clock)


@dataclass(frozen=True)
class GroupPlan:
    """What to group: selected posts by one or two keys, each a Group or a name in `labels`; `missing` keeps the groups without
    a value."""

    scan: Scan
    selection: Selection
    groups: tuple[str, ...]
    limit: int
    authors: bool
    missing: bool
    labels: Mapping[str, LabelColumn] = field(default_factory=dict)


def run_groups(session: Session, lake: Lake, plan: GroupPlan) -> tuple[list[dict[str, Any]], int]:
    """The largest groups, and how many groups there are in all."""
    if not plan.scan.files:
        return [], 0
    source = prepare(session, lake, plan.scan, plan.selection, reader=Reader.ALL)
    clock = clock_column(plan.selection.filters.clock)
    names = [f"key{number}" for number in range(len(plan.groups))]
    joined, joins = [], []
    own = ["r.did", "r.collection", "r.rkey_tid", "r.rkey_text"]
    own += [
        f"{group_expression(Group(group), clock)} AS {name}"
        for name, group in zip(names, plan.groups, strict=True)
        if group not in plan.labels
    ]
    of = matches(session, lake, plan.scan, source, ", ".join(own))
    for name, group in zip(names, plan.groups, strict=True):
        if group in plan.labels:
            join = label_join(plan.labels[group], of.bound, name=f"label_{name}")
            joins.append(join.sql)
            joined.append(f"{join.expression} AS {name}")
        else:
            joined.append(f"r.{name}")
    authors = "count(DISTINCT author)" if plan.authors else "0"
    wanted = "TRUE" if plan.missing else " AND ".join(f"{name} IS NOT NULL" for name in names)
    statement = (
        f"WITH matching AS (SELECT {', '.join(own)} FROM {of.relation} WHERE {of.condition}),"
        f" keyed AS (SELECT r.did AS author, {', '.join(joined)} FROM matching AS r {' '.join(joins)})"
        f" SELECT {', '.join(names)}, count(*) AS posts, {authors} AS authors, count(*) OVER () AS groups"
        f" FROM keyed WHERE {wanted} GROUP BY {', '.join(names)}"
        f" ORDER BY posts DESC, {', '.join(names)} LIMIT $count"
    )
    rows = session.rows(statement, {**of.bound.values, "count": plan.limit})
    found = []
    for *key, posts, authors_found, _ in rows:
        row: dict[str, Any] = {group: _plain(value) for group, value in zip(plan.groups, key, strict=True)}
        row["count"] = posts
        if plan.authors:
            row["authors"] = authors_found
        found.append(row)
    return found, int(rows[0][-1]) if rows else 0


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_time(to_micros(value))
    return format_time(to_micros(_naive(value))) if hasattr(value, "isoformat") else value
