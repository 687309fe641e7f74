"""Edges between accounts: who follows, blocks, likes, reposts, replies to, mentions or quotes whom."""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from xml.sax.saxutils import quoteattr

import pyarrow as pa

from api.current import IS_RECORD
from api.engine import Session
from api.identifiers import POST
from api.key_skip import holding
from api.relation import READ_FILES, Lake
from api.snapshots import Scan, as_of_predicate
from api.sql import Bound, all_of, one_of, range_predicates
from lake.manifest import LiveFile


class EdgeKind(StrEnum):
    """What connects two accounts."""

    FOLLOW = "follow"
    BLOCK = "block"
    LIKE = "like"
    REPOST = "repost"
    REPLY = "reply"
    MENTION = "mention"
    QUOTE = "quote"


def _authority(stem: str) -> str:
    return f"coalesce(r.{stem}_did, string_split(r.{stem}_uri_text, '/')[3])"


_EDGES: Final = {
    EdgeKind.FOLLOW: ("app.bsky.graph.follow", "r.subject"),
    EdgeKind.BLOCK: ("app.bsky.graph.block", "r.subject"),
    EdgeKind.LIKE: ("app.bsky.feed.like", _authority("subject")),
    EdgeKind.REPOST: ("app.bsky.feed.repost", _authority("subject")),
    EdgeKind.REPLY: (POST, _authority("reply_parent")),
    EdgeKind.MENTION: (POST, "unnest(r.mentions)"),
    EdgeKind.QUOTE: (POST, _authority("quote")),
}
"""Kind → table of the records that are such edges, and the expression of the account they point at."""


def table_of_edges(kind: EdgeKind) -> str:
    """The table whose rows are edges of a kind."""
    return _EDGES[kind][0]


@dataclass(frozen=True)
class EdgePlan:
    """Which edges: of one kind, from and to accounts (DIDs; none = any), in a range of arrival.

    weighted: one row per pair of accounts with the number of edges between them, the heaviest first; otherwise one row
    per edge, the newest first.
    """

    scan: Scan
    kind: EdgeKind
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    start_us: int | None
    end_us: int | None
    weighted: bool
    limit: int


EDGE_SCHEMA: Final = pa.schema(
    [("source", pa.string()), ("target", pa.string()), ("kind", pa.string()), ("time", pa.timestamp("us"))]
)
WEIGHTED_SCHEMA: Final = pa.schema(
    [
        ("source", pa.string()),
        ("target", pa.string()),
        ("kind", pa.string()),
        ("weight", pa.int64()),
        ("first", pa.timestamp("us")),
        ("last", pa.timestamp("us")),
    ]
)


def run_edges(session: Session, lake: Lake, plan: EdgePlan) -> tuple[pa.Table, bool]:
    """The edges, and whether the limit cut them off."""
    schema = WEIGHTED_SCHEMA if plan.weighted else EDGE_SCHEMA
    table, target = _EDGES[plan.kind]
    files = _holders(lake, plan)
    if not files:
        return schema.empty_table(), False
    joins = lake.current.ends(session, plan.scan.snapshot, table, plan.start_us).attach(session)
    bound = Bound()
    predicates = [IS_RECORD, *range_predicates(plan.start_us, plan.end_us, "r.time", bound)]
    if plan.sources:
        predicates.append(one_of("r.did", plan.sources, bound))
    if plan.scan.as_of is not None:
        predicates.append(as_of_predicate(plan.scan.as_of, table, bound))
    wanted = one_of("target", plan.targets, bound) if plan.targets else "target IS NOT NULL"
    kind = bound.bind(str(plan.kind))
    edges = (
        f"WITH edges AS (SELECT r.did AS source, {target} AS target, r.time AS time, r.kafka_partition, r.kafka_offset"
        f" FROM {READ_FILES} AS r {joins} WHERE {all_of(predicates)})"
    )
    if plan.weighted:
        statement = (
            f"{edges} SELECT source, target, {kind} AS kind, count(*) AS weight, min(time) AS first, max(time) AS last"
            f" FROM edges WHERE {wanted} GROUP BY source, target ORDER BY weight DESC, source, target LIMIT $count"
        )
    else:
        statement = (
            f"{edges} SELECT source, target, {kind} AS kind, time FROM edges WHERE {wanted}"
            " ORDER BY time DESC, kafka_partition DESC, kafka_offset DESC, target LIMIT $count"
        )
    values = {**bound.values, "files": lake.paths(files), "count": plan.limit + 1}
    found = session.table(statement, values).cast(schema)
    return found.slice(0, plan.limit), found.num_rows > plan.limit


def _holders(lake: Lake, plan: EdgePlan) -> Sequence[LiveFile]:
    """The files that can hold an edge of the plan."""
    scan = plan.scan
    if plan.sources:
        scan = holding(lake, scan, {"did": plan.sources})
    if plan.targets and _EDGES[plan.kind][1] == "r.subject":
        scan = holding(lake, scan, {"subject": plan.targets})
    return scan.files


_NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _attribute(text: str) -> str:
    """A quoted attribute value; characters that XML cannot hold (a mention may name anything) become U+FFFD."""
    return quoteattr(_NOT_XML.sub("\ufffd", text))


def to_gexf(edges: pa.Table, kind: EdgeKind, created: str) -> str:
    """The edges as a GEXF 1.3 document (https://gexf.net), which Gephi and networkx read; `created` is a date."""
    sources, targets = edges["source"].to_pylist(), edges["target"].to_pylist()
    weights = edges["weight"].to_pylist() if "weight" in edges.column_names else [1] * edges.num_rows
    numbers = {did: number for number, did in enumerate(dict.fromkeys(sources + targets))}
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<gexf xmlns="http://gexf.net/1.3" version="1.3">',
        f'<meta lastmodifieddate="{created}"><creator>Bluesky Post Explorer</creator></meta>',
        '<graph defaultedgetype="directed">',
        "<nodes>",
        *(f'<node id="{number}" label={_attribute(did)}/>' for did, number in numbers.items()),
        "</nodes>",
        "<edges>",
        *(
            f'<edge id="{number}" source="{numbers[source]}" target="{numbers[target]}" weight="{weight}" kind="{kind}"/>'
            for number, (source, target, weight) in enumerate(zip(sources, targets, weights, strict=True))
        ),
        "</edges>",
        "</graph>",
        "</gexf>",
    ]
    return "\n".join(lines) + "\n"
