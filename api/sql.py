"""From typed filters to SQL: pure functions that yield constant text with named parameters, and the bound values.

No value from a client is ever part of the text; identifiers come from the table shapes in `schemas.tables` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api.filters import Clock, PostFilters
from api.identifiers import RecordUri, tid_value
from api.query_text import And, Node, Not, Or, Term, alternation, parse, term_pattern
from api.times import to_datetime


class Bound:
    """The values of one statement, by name; `bind` gives the placeholder for one more."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def bind(self, value: Any) -> str:
        """Keep `value` and return its placeholder."""
        name = f"p{len(self.values)}"
        self.values[name] = value
        return f"${name}"


def all_of(predicates: Sequence[str]) -> str:
    """The conjunction; TRUE for none."""
    return " AND ".join(f"({predicate})" for predicate in predicates) if predicates else "TRUE"


def any_of(predicates: Sequence[str]) -> str:
    """The disjunction; FALSE for none."""
    return " OR ".join(f"({predicate})" for predicate in predicates) if predicates else "FALSE"


def holds(predicate: str) -> str:
    """The predicate with NULL read as false."""
    return f"coalesce({predicate}, FALSE)"


def text_predicate(node: Node, column: str, bound: Bound, *, exact: bool, case_sensitive: bool) -> str:
    """The predicate of a query tree over a text column; NULL text matches nothing and is met by every NOT."""
    options = "'c'" if case_sensitive else "'i'"
    match node:
        case Term():
            return f"regexp_matches(coalesce({column}, ''), {bound.bind(term_pattern(node, exact=exact))}, {options})"
        case Not(operand):
            return f"NOT ({text_predicate(operand, column, bound, exact=exact, case_sensitive=case_sensitive)})"
        case And(operands):
            return all_of(
                [text_predicate(item, column, bound, exact=exact, case_sensitive=case_sensitive) for item in operands]
            )
        case Or(operands):
            terms = tuple(item for item in operands if isinstance(item, Term))
            rest = [item for item in operands if not isinstance(item, Term)]
            parts = [text_predicate(item, column, bound, exact=exact, case_sensitive=case_sensitive) for item in rest]
            if terms:
                pattern = bound.bind(alternation(terms, exact=exact))
                parts.append(f"regexp_matches(coalesce({column}, ''), {pattern}, {options})")
            return any_of(parts)


def record_predicate(stem: str, uri: RecordUri, bound: Bound) -> str:
    """That the at-uri columns of `stem` (`reply_parent`, `quote`, …) name this record."""
    value = tid_value(uri.rkey)
    if value is None:
        return f"{stem}_uri_text = {bound.bind(str(uri))}"
    return (
        f"{stem}_rkey_tid = {bound.bind(value)} AND {stem}_did = {bound.bind(uri.authority)}"
        f" AND {stem}_collection = {bound.bind(uri.collection)}"
    )


def one_of(column: str, values: Sequence[Any], bound: Bound) -> str:
    """That the column has one of the values: a plain list, which DuckDB pushes down into the Parquet scan."""
    return f"{column} IN ({', '.join(bound.bind(value) for value in values)})"


def authority_predicate(stem: str, dids: Sequence[str], bound: Bound) -> str:
    """That the at-uri columns of `stem` name a record of one of these accounts."""
    # string_split, here and elsewhere: DuckDB 2.0.0 cannot bind split_part over a column that is null throughout.
    split = f"string_split({stem}_uri_text, '/')[3]"
    return one_of(f"coalesce({stem}_did, {split})", dids, bound)


def key_predicate(uri: RecordUri, bound: Bound) -> str:
    """That the row is about this record of its own table."""
    value = tid_value(uri.rkey)
    rkey = f"rkey_text = {bound.bind(uri.rkey)}" if value is None else f"rkey_tid = {bound.bind(value)}"
    return f"did = {bound.bind(uri.authority)} AND collection = {bound.bind(uri.collection)} AND {rkey}"


def clock_column(clock: Clock) -> str:
    """The column of a clock."""
    return "time" if clock is Clock.ARRIVAL else "created_at"


def range_predicates(start_us: int | None, end_us: int | None, column: str, bound: Bound) -> list[str]:
    """start <= column < end."""
    found = []
    if start_us is not None:
        found.append(f"{column} >= {bound.bind(to_datetime(start_us))}")
    if end_us is not None:
        found.append(f"{column} < {bound.bind(to_datetime(end_us))}")
    return found


def _list_predicate(column: str, values: Sequence[str], bound: Bound) -> str:
    return holds(f"list_has_any({column}, {bound.bind(list(values))})")


def _languages(values: Sequence[str], bound: Bound) -> str:
    exact, primary = [v for v in values if "-" in v], [v for v in values if "-" not in v]
    parts = []
    if primary:
        tags = "list_transform(langs, lambda tag: string_split(lower(tag), '-')[1])"
        parts.append(f"list_has_any({tags}, {bound.bind(primary)})")
    if exact:
        parts.append(f"list_has_any(list_transform(langs, lambda tag: lower(tag)), {bound.bind(exact)})")
    return holds(any_of(parts))


def _domains(values: Sequence[str], bound: Bound) -> str:
    parts = [
        f"len(list_filter(domains, lambda host: host = {bound.bind(value)} OR suffix(host, {bound.bind('.' + value)}))) > 0"
        for value in values
    ]
    return holds(any_of(parts))


_BARE_LINK = (
    "lower(regexp_extract(link, '^(?i:https?://)?(?i:www\\.)?([^/]*)', 1))"
    " || substr(link, length(regexp_extract(link, '^(?i:https?://)?(?i:www\\.)?[^/]*')) + 1)"
)
"""A link without scheme and `www.`, its host in lower case, as `filters.Url` writes them."""


def _urls(values: Sequence[str], bound: Bound) -> str:
    parts = [
        f"len(list_filter(links, lambda link: starts_with({_BARE_LINK}, {bound.bind(value)}))) > 0" for value in values
    ]
    return holds(any_of(parts))


def post_predicates(filters: PostFilters, bound: Bound) -> list[str]:
    """Predicates over the columns of app.bsky.feed.post for everything but minimum counts.

    The handles in `filters` must have been resolved to DIDs. Cheap and selective predicates come first.
    """
    clock = clock_column(filters.clock)
    found = range_predicates(filters.start, filters.end, clock, bound)
    for column, wanted, unwanted in (
        ("did", filters.author, filters.not_author),
        ("media_kind", filters.media, filters.not_media),
    ):
        if wanted:
            found.append(one_of(column, [str(value) for value in wanted], bound))
        if unwanted:
            found.append(f"NOT {holds(one_of(column, [str(value) for value in unwanted], bound))}")
    if filters.operation is not None:
        found.append(f"operation = {bound.bind(str(filters.operation))}")
    if filters.resync is not None:
        found.append(f"resync = {bound.bind(filters.resync)}")
    if filters.reply is not None:
        present = "(reply_parent_did IS NOT NULL OR reply_parent_uri_text IS NOT NULL)"
        found.append(present if filters.reply else f"NOT {present}")
    if filters.quote is not None:
        present = "(quote_did IS NOT NULL OR quote_uri_text IS NOT NULL)"
        found.append(present if filters.quote else f"NOT {present}")
    if filters.reply_to is not None:
        found.append(record_predicate("reply_parent", filters.reply_to, bound))
    if filters.reply_to_author:
        found.append(authority_predicate("reply_parent", filters.reply_to_author, bound))
    if filters.thread is not None:
        found.append(
            any_of([record_predicate("reply_root", filters.thread, bound), key_predicate(filters.thread, bound)])
        )
    if filters.quoted is not None:
        found.append(record_predicate("quote", filters.quoted, bound))
    if filters.quoted_author:
        found.append(authority_predicate("quote", filters.quoted_author, bound))
    if filters.hour_of_day:
        found.append(one_of(f"hour({clock})", filters.hour_of_day, bound))
    if filters.weekday:
        found.append(one_of(f"isodow({clock})", filters.weekday, bound))
    for make, wanted, unwanted in (
        (_languages, filters.lang, filters.not_lang),
        (_domains, filters.domain, filters.not_domain),
        (_urls, filters.url, filters.not_url),
    ):
        if wanted:
            found.append(make(wanted, bound))
        if unwanted:
            found.append(f"NOT {make(unwanted, bound)}")
    for column, wanted, unwanted in (
        ("hashtags", filters.hashtag, filters.not_hashtag),
        ("mentions", filters.mention, filters.not_mention),
        ("self_labels", filters.self_label, filters.not_self_label),
    ):
        if wanted:
            found.append(_list_predicate(column, wanted, bound))
        if unwanted:
            found.append(f"NOT {_list_predicate(column, unwanted, bound)}")
    if filters.text is not None:
        found.append(
            text_predicate(
                parse(filters.text), "text", bound, exact=filters.exact, case_sensitive=filters.case_sensitive
            )
        )
    return found
