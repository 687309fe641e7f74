"""Roll-ups: small hourly counts beside the lake, so that long ranges can be charted without reading every row.

Five kinds, one Parquet file per closed hour and kind under `<lake>/.rollups/<kind>/date=YYYY-MM-DD/`:

| kind | one row per | counts |
|---|---|---|
| events | table, operation, language | events, accounts |
| hashtags | hashtag | posts, accounts |
| domains | linked domain | posts, accounts |
| engagement | post (subject_did, subject_rkey_tid) | likes, reposts, replies, quotes |
| accounts | – | accounts that acted, that posted |

`language` is set for posts only (a post of two languages counts in both; without one it is null). Content counts leave out
what was deleted by the time of the roll-up; `events` counts the log. `index.json` names the current file of each hour by a
digest of the lake files it was made from: when those change (late events, erasure, replay) the hour is made anew by the next
run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from lake.convert import lake_schema
from lake.manifest import HOUR_US, LiveFile, Manifest
from lake.store import LakeStore

FOLDER: Final = ".rollups"
KINDS: Final = ("events", "hashtags", "domains", "engagement", "accounts")
POSTS: Final = "app.bsky.feed.post"
_SUBJECTS: Final = {"app.bsky.feed.like": "likes", "app.bsky.feed.repost": "reposts"}
_SUBJECT: Final = ["subject_did", "subject_rkey_tid"]
_OTHER_COLUMNS: Final = ["did", "operation", "erased", "subject_did", "subject_collection", "subject_rkey_tid"]
_POST_COLUMNS: Final = [
    *("did", "operation", "erased", "langs", "hashtags", "domains"),
    *(f"{stem}_{part}" for stem in ("reply_parent", "quote") for part in ("did", "collection", "rkey_tid")),
]
_NOT_ACTING: Final = frozenset({"identity", "account", "sync"})
"""Tables of events that happen to an account rather than being its doing."""

HourFiles = Mapping[str, list[LiveFile]]
"""Table → live files of one hour."""


@dataclass(frozen=True, slots=True)
class RollUp:
    """What a run made; `complete` is False when `go_on` ended it."""

    hours: int
    rows: int
    complete: bool


def update(store: LakeStore, manifest: Manifest, closed_before_us: int, go_on: Callable[[], bool]) -> RollUp:
    """Make the roll-ups of closed hours whose files changed since; call under the maintenance lock.

    Blocks for the reading; `go_on` is asked before every hour. Raises FileDamaged, OSError.
    """
    folder = store.root / FOLDER
    index = read_index(folder)
    made = rows = 0
    for hour_us, files in sorted(_closed_hours(manifest, closed_before_us).items(), reverse=True):
        digest = _digest(files)
        if index.get(hour_us, [""])[0] == digest:
            continue
        if not go_on():
            return RollUp(made, rows, False)
        for kind, frame in _roll_up(store, hour_us, files).items():
            path = file_of(folder, kind, hour_us, digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            frame.write_parquet(temporary, compression="zstd")
            temporary.rename(path)
            rows += frame.height
        # The file before stays for readers that looked into the index a moment ago; the one before that goes.
        index[hour_us] = [digest, *index.get(hour_us, [])][:2]
        _write_index(folder, index)
        _remove_others(folder, hour_us, index[hour_us])
        made += 1
    return RollUp(made, rows, True)


def read_index(folder: Path) -> dict[int, list[str]]:
    """Hour → digests of its current files and of those before; empty when there is none yet."""
    path = folder / "index.json"
    if not path.exists():
        return {}
    return {int(hour): digests for hour, digests in json.loads(path.read_text())["hours"].items()}


def file_of(folder: Path, kind: str, hour_us: int, digest: str) -> Path:
    """Where the roll-up of an hour lies."""
    hour = datetime.fromtimestamp(hour_us // 1_000_000, UTC)
    return folder / kind / f"date={hour:%Y-%m-%d}" / f"hour={hour:%H}-{digest}.parquet"


def read(folder: Path, kind: str, start_us: int, end_us: int) -> pl.DataFrame:
    """The rows of a kind for all rolled-up hours that begin in start_us <= hour < end_us, with the column `hour`."""
    paths = [
        file_of(folder, kind, hour_us, digests[0])
        for hour_us, digests in sorted(read_index(folder).items())
        if start_us <= hour_us < end_us
    ]
    return pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in paths]) if paths else pl.DataFrame()


def _closed_hours(manifest: Manifest, closed_before_us: int) -> dict[int, dict[str, list[LiveFile]]]:
    hours: dict[int, dict[str, list[LiveFile]]] = {}
    snapshot = manifest.snapshot()
    for table in snapshot.tables():
        for file in snapshot.files(table, None, closed_before_us + HOUR_US):
            if file.hour_us < closed_before_us:
                hours.setdefault(file.hour_us, {}).setdefault(table, []).append(file)
    return hours


def _digest(files: HourFiles) -> str:
    names = sorted(file.path for of_table in files.values() for file in of_table)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _write_index(folder: Path, index: Mapping[int, list[str]]) -> None:
    temporary = folder / "index.tmp"
    with temporary.open("w") as file:
        json.dump({"hours": {str(hour): digests for hour, digests in sorted(index.items())}}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / "index.json")


def _remove_others(folder: Path, hour_us: int, kept: list[str]) -> None:
    for kind in KINDS:
        path = file_of(folder, kind, hour_us, "*")
        for found in path.parent.glob(path.name):
            if not any(found.name.endswith(f"-{digest}.parquet") for digest in kept):
                found.unlink(missing_ok=True)


def _read(store: LakeStore, table: str, files: list[LiveFile], columns: list[str]) -> pl.DataFrame:
    present = [name for name in columns if name in lake_schema(table).names]
    frame = pl.from_arrow(pa.concat_tables([store.read(file.path, present) for file in files]))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _roll_up(store: LakeStore, hour_us: int, files: HourFiles) -> dict[str, pl.DataFrame]:
    """All kinds of one hour."""
    none = pl.Series("did", [], pl.String)
    events, actors, posters, done_to_posts = [], [none], none, []
    posts = pl.DataFrame()
    for table, of_table in sorted(files.items()):
        if table == POSTS:
            frame = _read(store, table, of_table, _POST_COLUMNS)
            posts = _standing(frame)
            posters = frame.filter(pl.col("operation") == "create")["did"].unique()
            done_to_posts += [_done_to(posts, "reply_parent", "replies"), _done_to(posts, "quote", "quotes")]
            events.append(_count(frame.explode("langs", empty_as_null=True).rename({"langs": "language"}), table))
        else:
            frame = _read(store, table, of_table, _OTHER_COLUMNS)
            if table in _SUBJECTS:
                done_to_posts.append(_done_to(_standing(frame), "subject", _SUBJECTS[table]))
            if "operation" not in frame.columns:
                frame = frame.with_columns(operation=pl.lit(None, pl.String))
            events.append(_count(frame.with_columns(language=pl.lit(None, pl.String)), table))
        if table not in _NOT_ACTING:
            actors.append(frame["did"].unique())
    hour = pl.lit(hour_us, pl.Int64).cast(pl.Datetime("us")).alias("hour")
    acting = pl.concat(actors).n_unique()
    rolled = {
        "events": pl.concat(events),
        "hashtags": _terms(posts, "hashtags", "hashtag"),
        "domains": _terms(posts, "domains", "domain"),
        "engagement": _engagement(done_to_posts),
        "accounts": pl.DataFrame({"accounts": [acting], "posting_accounts": [posters.len()]}),
    }
    return {kind: frame.select(hour, pl.all()) for kind, frame in rolled.items()}


def _standing(frame: pl.DataFrame) -> pl.DataFrame:
    """Created records whose content is still there."""
    return frame.filter((pl.col("operation") == "create") & pl.col("erased").is_null())


def _count(frame: pl.DataFrame, table: str) -> pl.DataFrame:
    return (
        frame.group_by("operation", "language")
        .agg(events=pl.len(), accounts=pl.col("did").n_unique())
        .sort("operation", "language")
        .select(pl.lit(table).alias("table"), "operation", "language", "events", "accounts")
    )


def _terms(posts: pl.DataFrame, column: str, name: str) -> pl.DataFrame:
    """Posts and accounts per distinct value of a list column, most used first."""
    if posts.is_empty():
        return pl.DataFrame(schema={name: pl.String, "posts": pl.UInt32, "accounts": pl.UInt32})
    terms = (
        posts.select("did", pl.col(column).list.unique().alias(name)).explode(name, empty_as_null=True).drop_nulls(name)
    )
    counted = terms.group_by(name).agg(posts=pl.len(), accounts=pl.col("did").n_unique())
    return counted.sort(["posts", name], descending=[True, False])


def _done_to(frame: pl.DataFrame, stem: str, what: str) -> pl.DataFrame:
    """The posts that the rows of `frame` like, repost, answer or quote, one row each time."""
    return frame.filter(pl.col(f"{stem}_collection") == POSTS).select(
        pl.col(f"{stem}_did").alias("subject_did"),
        pl.col(f"{stem}_rkey_tid").alias("subject_rkey_tid"),
        pl.lit(what).alias("what"),
    )


def _engagement(parts: list[pl.DataFrame]) -> pl.DataFrame:
    counts: dict[str, Any] = {
        what: (pl.col("what") == what).sum() for what in ("likes", "reposts", "replies", "quotes")
    }
    if not parts:
        schema = {"subject_did": pl.String, "subject_rkey_tid": pl.Int64, **dict.fromkeys(counts, pl.UInt32)}
        return pl.DataFrame(schema=schema)
    # A subject whose record key is no TID has no compact form and is not counted: no post of Bluesky is such a one.
    return pl.concat(parts).drop_nulls(_SUBJECT).group_by(_SUBJECT).agg(**counts).sort(_SUBJECT)
