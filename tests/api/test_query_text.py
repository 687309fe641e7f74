"""The search language: what is read, what is refused, and what the compiled patterns find."""

from __future__ import annotations

import unicodedata

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.query_text import And, Not, Or, QueryTextError, Term, parse, term_pattern
from api.sql import Bound, text_predicate


def finds(query: str, text: str | None, *, exact: bool = False, case_sensitive: bool = False) -> bool:
    bound = Bound()
    predicate = text_predicate(parse(query), "text", bound, exact=exact, case_sensitive=case_sensitive)
    statement = f"SELECT {predicate} FROM (SELECT $text::VARCHAR AS text)"
    return bool(duckdb.execute(statement, {**bound.values, "text": text}).fetchone()[0])


def test_grammar() -> None:
    assert parse("a") == Term("a")
    assert parse("a b") == And((Term("a"), Term("b")))
    assert parse("a AND b") == And((Term("a"), Term("b")))
    assert parse("a b OR c") == Or((And((Term("a"), Term("b"))), Term("c")))
    assert parse("a (b OR c)") == And((Term("a"), Or((Term("b"), Term("c")))))
    assert parse("-a") == Not(Term("a"))
    assert parse("NOT NOT a") == Term("a")
    assert parse('-"a b"') == Not(Term("a b"))
    assert parse("-(a b)") == Not(And((Term("a"), Term("b"))))
    assert parse("well-known") == Term("well-known")
    assert parse("or and not") == And((Term("or"), Term("and"), Term("not")))
    assert parse('"OR"') == Term("OR")
    assert parse(r'"say \"hi\""') == Term('say "hi"')
    assert parse("a - b") == And((Term("a"), Term("-"), Term("b")))


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ('"open', "never closed"),
        ("(a", "never closed"),
        ("a)", "closes nothing"),
        ("()", "stands where"),
        ("a OR", "ends where"),
        ("OR a", "stands where"),
        ("NOT", "ends where"),
        ("*", "wildcards"),
        ('""', "empty"),
        ("a" * 2001, "2001 characters"),
        ("a " * 51, "50 words"),
        ("(" * 21 + "a" + ")" * 21, "deep"),
        ("a\ud800", "surrogate"),
    ],
)
def test_what_is_refused_is_explained(query: str, named: str) -> None:
    with pytest.raises(QueryTextError, match=named):
        parse(query)


@pytest.mark.parametrize(
    ("query", "text", "plain", "exact"),
    [
        ("cat", "Category", True, False),
        ("cat", "a CAT.", True, True),
        ("cat", "cat", True, True),
        ("cat", "the_cat", True, False),
        ("climat*", "climatology now", True, True),
        ("climat*ogy", "climatology", True, True),
        ("climat*ogy", "climate ogy", False, False),
        ('"new york"', "New\n  York", True, True),
        ('"new york"', "newyork", False, False),
        ("100%", "100% sure", True, True),
        ("100%", "1000 sure", False, False),
        ("a_b", "axb", False, False),
        ("a.b", "axb", False, False),
        ("c++", "I like C++ a lot", True, True),
        ("#Cats", "two #cats here", True, True),
        ("#cat", "#cats", True, False),
        ("café", "CAFÉ", True, True),
        ("café", unicodedata.normalize("NFD", "Café!"), True, True),
        (unicodedata.normalize("NFD", "café"), "café", True, True),
        ("cafe", "café", False, False),
        ("straße", "STRASSE", False, False),
        ("猫", "黒猫が好き", True, True),
        ("猫が", "黒猫が好き", True, True),
        ("cat", "黒cat猫", True, True),
        ("แมว", "ฉันรักแมวมาก", True, True),
        ("🎉", "done🎉🎉", True, True),
        ("naïve", "naïveté", True, False),
        ("x", None, False, False),
        ("-x", None, True, True),
        ("cat OR dog", "hotdog", True, False),
        ("cat -dog", "cat and hotdog", False, True),
        ("NOT (cat dog)", "cat", True, True),
        (r"back\slash", r"a back\slash b", True, True),
        ("a\x00b", "xa\x00by", True, False),
    ],
)
def test_what_a_query_finds(query: str, text: str | None, plain: bool, exact: bool) -> None:
    assert finds(query, text) is plain
    assert finds(query, text, exact=True) is exact


def test_case_can_matter() -> None:
    assert finds("US", "US and us", case_sensitive=True)
    assert not finds("US", "just us", case_sensitive=True)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), st.booleans())
def test_any_text_is_refused_or_compiles(query: str, exact: bool) -> None:
    try:
        parse(query)
    except QueryTextError:
        return
    finds(query, "some text", exact=exact)


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
        lambda t: t.split() and '"' not in t
    )
)
def test_a_quoted_text_finds_itself(text: str) -> None:
    escaped = text.replace("\\", "\\\\")
    if not text.replace("*", "").strip():
        return
    assert finds(f'"{escaped}"', f"before {text} after")
    assert finds(f'"{escaped}"', f"before {text} after", exact=True)
    assert term_pattern(Term(text), exact=False)
