"""The order by engagement: the first matches by likes, reposts and replies together, of which as few as possible are counted.

The index of engagement tells which posts can have most. Of these, from the highest bound on, matches are looked for and counted,
until the last of the page has a score that no other post can have. What was looked at or counted is not read again.
"""
# ruff: noqa: S608 - statements are made of constants, column names of the table shapes, and names of bound values

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from api.bounds import HIGHEST, Bounds, bounds_of
from api.current import ENDING_KEYS
from api.cursors import Cursor
from api.engagement import KEYS, count_engagement, is_likely, likely, named_from, same_record
from api.engine import Session
from api.fetch import fetch
from api.identifiers import POST
from api.matches import matches
from api.posts_query import Reader, Selection, prepare, selected, selects_by_text, selects_many
from api.relation import ROW, Lake, Source
from api.snapshots import Scan
from api.sql import Bound, all_of
from api.walk import after, order_by
from lake.convert import lake_schema

SCORED: Final = ("likes", "reposts", "replies")
"""The kinds of engagement whose sum is the score of a post."""
PAGE_KEYS: Final = ("time", "did", "rkey_tid", "rkey_text", "kafka_partition", "kafka_offset")
"""Columns that every page has: its order, and what extras are looked up by."""
KEYS_OF_ROWS: Final = ", ".join(f"r.{name}" for name in (*PAGE_KEYS, *ROW))

_LIKELY: Final = (20_000, 400_000)
"""How many of the posts that are named most often a ranking looks at, before it looks at all."""

_LOOKED_AT: Final = 1.2
"""Times as many posts as should hold the page's matches are looked at first."""
_COUNTED: Final = 1.1
"""Times as many matches as the page needs are counted first, since bounds are not counts."""
_GROWTH: Final = 4
"""At most so many times as many are looked at the next time, while the page is not full."""
_MOST_LOOKED_AT: Final = 400_000
"""Where more posts would have to be looked at by themselves, all of the range are read."""
_MOST_MATCHES: Final = 1_000_000
"""More than that are not held in memory."""


@dataclass(frozen=True)
class Ranking:
    """A page of the posts of a plan that a selection names, behind `cursor`, by score; used by one worker thread."""

    session: Session
    lake: Lake
    scan: Scan
    selection: Selection
    limit: int
    cursor: Cursor | None

    def first(self) -> pa.Table:
        """The rows of the page and one more, in order, with PAGE_KEYS, ROW and `score`. Blocks for the reads it needs: where the
        index does not settle the page, of every like, repost and reply since the first post."""
        found = None
        if selects_by_text(self.scan, self.selection):
            filters = self.selection.filters
            bounds = bounds_of(self.session, self.lake, self.scan, named_from(filters), SCORED)
            if bounds is not None:
                if filters.engagement:
                    bounds = replace(bounds, plan=bounds.at_least(filters.engagement))
                found = self._of_highest(bounds)
            elif selects_many(self.scan, self.selection) and not filters.engagement:
                found = self._of_likely()
        return self._of_all() if found is None else found

    def _of_all(self) -> pa.Table:
        source = prepare(self.session, self.lake, self.scan, self.selection)
        of = matches(self.session, self.lake, self.scan, source, KEYS_OF_ROWS)
        matching = f"SELECT {KEYS_OF_ROWS} FROM {of.relation} WHERE {of.condition}"
        keys = self.session.table(f"SELECT {', '.join(KEYS.names)} FROM ({matching})", of.bound.values)
        return self._first(self._scores(keys, matching), of.bound)

    def _of_highest(self, bounds: Bounds) -> pa.Table | None:
        """The rows, or None where too many posts would have to be looked at."""
        plan, needed = bounds.plan, self.limit + 1
        if not plan.files:
            return _NONE_SCORED
        source = selected(self.session, self.lake, plan, self.selection, Reader.FEW)
        share = self._share_that_matches(plan, source)
        # Those of the pages before come first, and some whose bounds do not tell that they do not.
        begun = HIGHEST + 1 if self.cursor is None else min(int(self.cursor.key[0]), HIGHEST)
        wanted = math.ceil(_LOOKED_AT * needed / share) + (0 if self.cursor is None else int(bounds.reaching[begun]))
        # In falling order of `highest`: what was looked at, all that can have `least`; of it, `done` are counted.
        places, highest, least = _NO_PLACES, np.zeros(0, np.int64), HIGHEST + 1
        scored: list[pa.Table] = []
        done = 0
        while True:
            page = self._page(scored)
            full = page.num_rows == needed
            last = min(score_of(page), HIGHEST) if full else 0
            if done < len(highest) and highest[done] >= last:
                more = int(np.count_nonzero(highest[done:] >= (last if full else begun)))
                if not full:
                    more += max(round(_COUNTED * (needed - page.num_rows)), done // 2)
                scored.append(self._counted(places.slice(done, more), source))
                done = min(done + more, len(highest))
                continue
            if last >= least or not least:
                return page
            if not full and least <= HIGHEST:
                seen = int(bounds.reaching[least])
                growth = min(_GROWTH, _LOOKED_AT * needed / max(1, page.num_rows))
                wanted = max(wanted, math.ceil(growth * seen), seen + 1)
            below, least = least, last if full else min(least - 1, bounds.least_of(wanted))
            if bounds.reaching[least] > _MOST_LOOKED_AT:
                least = 0
            if not least and share * sum(map(plan.rows_to_read, plan.files)) > _MOST_MATCHES:
                return None
            part = bounds.scoring(least, below) if least else plan
            if not part.files:
                continue
            found = self._places(part, source)
            scores = bounds.of_rows(found)
            order = np.argsort(-scores, kind="stable")
            # Of a file that is read whole there are others, which were looked at or will be.
            order = order[(scores[order] >= least) & (scores[order] < below)]
            places = pa.concat_tables([places, found.take(pa.array(order))])
            highest = np.concatenate([highest, scores[order]])

    def _share_that_matches(self, plan: Scan, source: Source) -> float:
        """How large a share of the rows of a plan matches, by one of its files; never 0."""
        file = max(plan.files, key=plan.rows_to_read)
        reading, values = self.lake.reading(replace(plan, files=(file,)), source.condition)
        found = self.session.rows(
            f"SELECT count(*) FROM {source.over(reading)} WHERE {source.condition}", {**source.bound.values, **values}
        )
        return max(1, int(found[0][0])) / max(1, plan.rows_to_read(file))

    def _places(self, part: Scan, source: Source) -> pa.Table:
        """Where the matches lie, also those that ended."""
        names = ", ".join(f"r.{name}" for name in ROW)
        of = matches(self.session, self.lake, part, source, names)
        return self.session.table(f"SELECT {names} FROM {of.relation} WHERE {of.condition}", of.bound.values)

    def _counted(self, places: pa.Table, source: Source) -> pa.Table:
        """The posts at some places that did not end and have the minimum counts, with their scores."""
        assert source.ends is not None
        rows = fetch(self.session, POST, places, (*PAGE_KEYS, *ENDING_KEYS))
        for name in ROW:
            rows = rows.append_column(name, places[name])
        rows = rows.take(pa.array(source.ends.standing(self.session, rows), pa.int64()))
        self.session.register("likely_posts", rows)
        scored = self._scores(rows.select(KEYS.names), f"SELECT {KEYS_OF_ROWS} FROM likely_posts AS r")
        having = [
            f"EXISTS (FROM scored_{kind} AS e WHERE {same_record('e', 'm')} AND e.count >= {least})"
            for kind, least in self.selection.filters.engagement.items()
        ]
        return self.session.table(f"SELECT m.* FROM ({scored}) AS m WHERE {all_of(having)}", {})

    def _of_likely(self) -> pa.Table | None:
        """The rows, or None where posts that are named less often may belong before the last of them."""
        source = selected(self.session, self.lake, self.scan, self.selection, Reader.FEW).also(is_likely("likely"))
        assert source.ends is not None
        names = dict.fromkeys((*PAGE_KEYS, *ENDING_KEYS, *ROW))
        statement = f"SELECT {', '.join(f'r.{name}' for name in names)} FROM {source.relation} WHERE {source.condition}"
        for count in _LIKELY:
            most = likely(self.session, self.lake, self.scan, self.selection.filters, SCORED, count=count)
            self.session.register("likely", most)
            rows = self.session.table(statement, {**source.bound.values, "files": self.lake.paths(self.scan.files)})
            rows = rows.take(pa.array(source.ends.standing(self.session, rows), pa.int64()))
            self.session.register("likely_posts", rows)
            found = self._first(
                self._scores(rows.select(KEYS.names), f"SELECT {KEYS_OF_ROWS} FROM likely_posts AS r"), Bound()
            )
            others = 0 if most.num_rows < count else pc.min(most["most"]).as_py()
            if found.num_rows > self.limit and score_of(found) > others:
                return found
            if most.num_rows < count:
                break
        return None

    def _scores(self, keys: pa.Table, matching: str) -> str:
        """A statement for the posts that the statement `matching` selects, with their scores; `keys` are theirs. Leaves the counts
        of each kind in the session."""
        counts = []
        for kind in SCORED:
            counts.append(count_engagement(self.session, self.lake, self.scan, self.selection.filters, keys, kind))
            self.session.register(f"scored_{kind}", counts[-1])
        self.session.register("engagement", pa.concat_tables(counts))
        scores = "SELECT * EXCLUDE count, sum(count)::BIGINT AS score FROM engagement GROUP BY ALL"
        self.session.register("scores", self.session.table(scores, {}))
        return (
            f"SELECT m.*, coalesce(e.score, 0) AS score FROM ({matching}) AS m"
            f" LEFT JOIN scores AS e ON {same_record('e', 'm')}"
        )

    def _page(self, scored: Sequence[pa.Table]) -> pa.Table:
        """The first of some posts with scores."""
        if not scored:
            return _NONE_SCORED
        self.session.register("scored", pa.concat_tables(scored))
        return self._first("SELECT * FROM scored", Bound())

    def _first(self, scored: str, bound: Bound) -> pa.Table:
        """The first rows of the page, and one more, of a statement for posts with scores."""
        following = "TRUE"
        if self.cursor is not None:
            score = bound.bind(int(self.cursor.key[0]))
            later = after(self.cursor, bound, newest_first=True)
            following = f"score <= {score} AND (score < {score} OR ({later}))"
        statement = f"SELECT * FROM ({scored}) WHERE {following} ORDER BY score DESC, {order_by(newest_first=True)} LIMIT $count"
        return self.session.table(statement, {**bound.values, "count": self.limit + 1})


def score_of(rows: pa.Table) -> int:
    """The score of the last row."""
    return int(rows["score"][rows.num_rows - 1].as_py())


_NO_PLACES: Final = pa.schema([("filename", pa.string()), ("file_row_number", pa.int64())]).empty_table()
_NONE_SCORED: Final = pa.schema(
    [
        *(lake_schema(POST).field(name) for name in PAGE_KEYS),
        *_NO_PLACES.schema,
        pa.field("score", pa.int64()),
    ]
).empty_table()
