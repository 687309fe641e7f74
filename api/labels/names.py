"""How labels are written in requests: `[owner/]name[.column][@version]:condition`. Pure.

`mood:angry` is the value `angry` in the only column of the newest version of my table `mood`; `mood.score@3:>=0.8` a
comparison in one column of version 3; `mood:*` any value at all. A condition that starts with `=` is taken literally.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

NAME: Final = r"[a-z][a-z0-9_-]{0,63}"
COLUMN: Final = r"[a-z][a-z0-9_]{0,63}"
_OWNER: Final = r"[a-z0-9]{1,32}"
_REFERENCE: Final = re.compile(
    rf"(?:(?P<owner>{_OWNER})/)?(?P<name>{NAME})(?:\.(?P<column>{COLUMN}))?(?:@(?P<version>[1-9][0-9]{{0,8}}))?",
    re.ASCII,
)
_COMPARISON: Final = re.compile(r"(>=|<=|!=|>|<)\s*(.+)", re.DOTALL)
_RANGE: Final = re.compile(r"(.+?)\.\.(.+)", re.DOTALL)
MAX_CHARACTERS: Final = 512
HOW: Final = "write name:value, name.column:value, name@version:value, name:>=0.5, name:!=2, name:0.2..0.8 or name:*"


class ValueKind(StrEnum):
    """What a column holds."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


class Operator(StrEnum):
    """How a column is compared; `PRESENT` asks for any value."""

    EQUAL = "="
    NOT_EQUAL = "!="
    AT_LEAST = ">="
    ABOVE = ">"
    AT_MOST = "<="
    BELOW = "<"
    PRESENT = "*"


@dataclass(frozen=True, slots=True)
class Reference:
    """A column of a version of a table; None = one's own table, its only column, its newest version."""

    name: str
    owner: str | None = None
    column: str | None = None
    version: int | None = None


Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison of a column; `value` is None for PRESENT."""

    operator: Operator
    value: Value | None


def parse_reference(text: str) -> Reference:
    """Reads `[owner/]name[.column][@version]`; ValueError with the remedy otherwise."""
    match = _REFERENCE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not the name of a label: {HOW}")
    version = match["version"]
    return Reference(match["name"], match["owner"], match["column"], int(version) if version else None)


def split_label(text: str) -> tuple[Reference, str]:
    """The reference and the condition of `reference:condition`; ValueError with the remedy."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it is longer than {MAX_CHARACTERS} characters: {HOW}")
    reference, colon, condition = text.partition(":")
    if not colon or not condition:
        raise ValueError(f"{text!r} names no value: {HOW}")
    try:
        condition.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a surrogate pair; send well-formed Unicode") from None
    return parse_reference(reference), condition


def parse_condition(text: str, kind: ValueKind | None) -> tuple[Comparison, ...]:
    """The comparisons, all of which must hold, for a column of this kind (None = a table without values).

    ValueError, with the remedy, when the text does not fit the kind.
    """
    if text == "*":
        return (Comparison(Operator.PRESENT, None),)
    if kind is None:
        raise ValueError("the table has no values: write name:* for every row of it")
    if text.startswith("="):
        return (Comparison(Operator.EQUAL, _value(text[1:], kind)),)
    if kind in (ValueKind.INTEGER, ValueKind.NUMBER):
        if match := _COMPARISON.fullmatch(text):
            return (Comparison(Operator(match[1]), _value(match[2], kind)),)
        if match := _RANGE.fullmatch(text):
            return (
                Comparison(Operator.AT_LEAST, _value(match[1], kind)),
                Comparison(Operator.AT_MOST, _value(match[2], kind)),
            )
    return (Comparison(Operator.EQUAL, _value(text, kind)),)


def _value(text: str, kind: ValueKind) -> Value:
    match kind:
        case ValueKind.TEXT:
            return text
        case ValueKind.BOOLEAN:
            if text.lower() not in ("true", "false"):
                raise ValueError(f"{text!r} is not true or false")
            return text.lower() == "true"
        case ValueKind.INTEGER | ValueKind.NUMBER:
            try:
                number = float(text)
                exact = int(text) if kind is ValueKind.INTEGER and not math.isinf(number) else number
            except ValueError:
                # 2.5 is a fair bound for a column of integers.
                exact = _finite(text)
            if isinstance(exact, int) and not -(2**63) <= exact < 2**63:
                raise ValueError(f"{text!r} is too large")
            return _finite(text) if isinstance(exact, float) else exact


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is not a finite number")
    return number
