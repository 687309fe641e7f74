"""Posts as a relation: the current rows that a filter selects, ready to be paged, counted, grouped or exported.

`prepare` does, in a session, what a statement alone cannot: it attaches what ended rows, resolves minimum counts of likes,
reposts and replies into a set of posts, and binds every value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

import pyarrow as pa

from api.bounds import bounds_of
from api.current import IS_RECORD
from api.engagement import candidates, count_engagement, is_likely, likely, named_from, same_record
from api.engine import Session
from api.filters import PostFilters
from api.identifiers import POST
from api.labels.sql import LabelCondition, label_predicates
from api.relation import Lake, Source
from api.snapshots import Scan, as_of_predicate
from api.sql import Bound, post_predicates
from api.text_skip import required
from lake.text_index import parts


@dataclass(frozen=True)
class Selection:
    """What selects posts: filters whose handles are resolved, and conditions on label tables."""

    filters: PostFilters
    labels: tuple[LabelCondition, ...] = ()
    not_labels: tuple[LabelCondition, ...] = ()


def narrow(lake: Lake, plan: Scan, filters: PostFilters) -> Scan:
    """The plan without the files and rows that cannot hold a match of the text, as far as the lake's text index knows. May block
    for the side files."""
    condition = required(filters.text)
    if condition is None:
        return plan
    kept = parts(lake.root, plan.files, condition)
    stretches = {part.file.path: part.rows for part in kept if part.rows is not None}
    return replace(plan, files=tuple(part.file for part in kept), stretches=stretches)


_UNSELECTIVE: Final = frozenset(
    {"start", "end", "clock", "resync", "operation", "lang", "media", "reply", "quote", "hour_of_day", "weekday"}
    | {name for name in PostFilters.model_fields if name.startswith("not_")}
)
"""Filters that may leave most posts of a range."""
_TEXT: Final = frozenset({"text", "exact", "case_sensitive"})
_FEW_ROWS: Final = 20_000
"""So few posts are counted without asking first which of them can have something."""
_MINIMUMS: Final = frozenset(name for name in PostFilters.model_fields if name.startswith("min_"))


class Reader(Enum):
    """Who leaves out what ended: the reader of a few rows itself (`Source.ends`); or the relation, by joins, which look at the
    places of ended rows in all files beforehand where the source will be read to its end."""

    FEW = auto()
    SOME = auto()
    ALL = auto()


def prepare(session: Session, lake: Lake, plan: Scan, selection: Selection, *, reader: Reader = Reader.SOME) -> Source:
    """The posts of `plan` that are selected and current. Blocks for the reads it needs."""
    filters = selection.filters
    source = selected(session, lake, plan, selection, reader)
    if not filters.engagement:
        return source
    source = source.attached(session)
    predicates = list(source.predicates)
    keys = _that_may_have(session, lake, plan, selection, source)
    for kind, least in filters.engagement.items():
        session.register(f"engaged_{kind}", count_engagement(session, lake, plan, filters, keys, kind, least))
        predicates.append(f"EXISTS (FROM engaged_{kind} AS e WHERE {same_record('e', 'r')})")
    return replace(source, predicates=tuple(predicates))


def selected(session: Session, lake: Lake, plan: Scan, selection: Selection, reader: Reader) -> Source:
    """As `prepare`, without the minimum counts, which are left to the caller."""
    filters = selection.filters
    ends = lake.current.ends(session, plan.snapshot, POST, filters.start)
    bound = Bound()
    predicates = [IS_RECORD, *post_predicates(filters, bound)]
    predicates += label_predicates(selection.labels, selection.not_labels, bound)
    if plan.as_of is not None:
        predicates.append(as_of_predicate(plan.as_of, POST, bound))
    if reader is Reader.ALL and plan.files and not selection.labels and _asked(filters) <= _UNSELECTIVE:
        return Source(ends.attach_places(session, lake.paths(plan.files)), tuple(predicates), bound)
    source = Source("", tuple(predicates), bound, ends)
    return source if reader is Reader.FEW else source.attached(session)


def selects_many(plan: Scan, selection: Selection) -> bool:
    """Whether what is asked of posts, beside their engagement, may leave very many of a range: no filter, or a common word."""
    asked = _asked(selection.filters) - _UNSELECTIVE - _MINIMUMS
    if 2 * sum(map(plan.rows_to_read, plan.files)) > plan.rows:
        asked -= _TEXT
    return not selection.labels and not asked


def selects_by_text(plan: Scan, selection: Selection) -> bool:
    """Whether posts are selected by nothing else than a text and by what leaves most of a range, and are not few."""
    asked = _asked(selection.filters) - _UNSELECTIVE - _MINIMUMS - _TEXT
    return not selection.labels and not asked and are_many(plan)


def are_many(plan: Scan) -> bool:
    """Whether a plan has more rows to read than are counted without asking first which of them can have something."""
    return sum(map(plan.rows_to_read, plan.files)) > _FEW_ROWS


def _that_may_have(session: Session, lake: Lake, plan: Scan, selection: Selection, source: Source) -> pa.Table:
    """The keys of the posts of a source that can have the engagement asked for: counting for nearly every post takes longer than
    to look beforehand which ones are named so often at all."""
    filters = selection.filters
    if selects_by_text(plan, selection):
        bounds = bounds_of(session, lake, plan, named_from(filters), list(filters.engagement))
        if bounds is not None:
            return candidates(session, lake, bounds.at_least(filters.engagement), source)
    if selects_many(plan, selection):
        for kind, least in filters.engagement.items():
            session.register(f"likely_{kind}", likely(session, lake, plan, filters, [kind], least=least))
            source = source.also(is_likely(f"likely_{kind}"))
    return candidates(session, lake, plan, source)


def _asked(filters: PostFilters) -> set[str]:
    return set(filters.model_dump(exclude_defaults=True, include=set(PostFilters.model_fields)))
