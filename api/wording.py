"""What is wrong with a value, and what to write instead: pydantic's findings in the words of this API."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final

_SHOWN: Final = 60
_LIKENESS: Final = 0.7
_ELSEWHERE: Final = {
    "text": "q query keyword keywords search",
    "author": "from username user handle did actor authors",
    "start": "since after from_date start_date start_time startdate",
    "end": "until before to_date end_date end_time enddate",
    "hashtag": "tag tags hashtags",
    "lang": "language languages langs locale",
    "mention": "mentions to",
    "media": "has has_media media_type",
    "domain": "site host",
    "cursor": "page offset skip page_token next_token next_cursor",
    "limit": "size max_results per_page page_size count max_rows n",
    "sort": "order order_by sort_by",
    "fields": "columns select field",
    "interval": "granularity bucket frequency",
    "by": "group group_by groupby",
    "as_of": "snapshot version",
    "format": "type output",
}
_SYNONYMS: Final = {word: name for name, words in _ELSEWHERE.items() for word in words.split()}
"""What other search services call a parameter → what it is called here."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant: as other services call it, or the most similar one; None when none is near."""
    names = list(known)
    synonym = _SYNONYMS.get(name.lower())
    if synonym in names:
        return synonym
    near = difflib.get_close_matches(name, names, n=1, cutoff=_LIKENESS)
    return near[0] if near else None


def explain(finding: Mapping[str, Any], expected: str = "") -> str:
    """The text for one finding of pydantic. `expected` describes a parameter that is missing."""
    context = finding.get("ctx") or {}
    given = _shown(finding.get("input"))
    match finding["type"]:
        case "missing":
            return f"it is required: {expected}" if expected else "it is required"
        case "int_parsing" | "int_type" | "int_from_float" | "int_parsing_size":
            return f"{given} is not a whole number"
        case "float_parsing" | "float_type":
            return f"{given} is not a number"
        case "bool_parsing" | "bool_type":
            return f"{given} is neither true nor false"
        case "greater_than_equal":
            return f"{given} is too small: {context['ge']} is the smallest"
        case "less_than_equal":
            return f"{given} is too large: {context['le']} is the largest"
        case "enum" | "literal_error":
            return f"{given} is none of {str(context.get('expected', '')).replace(' or ', ', ')}"
        case "string_pattern_mismatch":
            return f"{given} does not have the form {context['pattern']}"
        case "string_too_long":
            return f"it has more than {context['max_length']} characters"
        case "string_too_short":
            return "it is empty"
        case "too_long":
            return f"it has more than {context['max_length']} values: split the request"
        case "too_short":
            return "it has no value"
        case "string_type":
            return f"{given} is not a text"
        case "list_type" | "tuple_type":
            return f"{given} is not a list"
        case "model_attributes_type" | "model_type" | "dict_type":
            return "it is not a JSON object: send one with Content-Type application/json"
        case _:
            return str(finding["msg"]).removeprefix("Value error, ")


def expected_of(annotation: Any, description: str | None) -> str:
    """What a parameter accepts: the values of an enumeration, and its description."""
    values = ", ".join(str(item.value) for item in annotation) if _is_enum(annotation) else ""
    return " ".join(part for part in (f"one of {values}." if values else "", description or "") if part).rstrip(".")


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Enum)


def _shown(value: Any) -> str:
    if not isinstance(value, str | int | float | bool):
        return "the value"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
