"""From a search text to what the lake's text index can tell: the files that may hold a match."""

from __future__ import annotations

import unicodedata

from api.query_text import And, Node, Not, Or, Term, parse
from lake.text_index import Condition, all_of, any_of, literal


def required(text: str | None) -> Condition | None:
    """What a file must have to hold a match of a search text; None when every file may. Raises QueryTextError."""
    return None if text is None else required_by(parse(text))


def required_by(node: Node) -> Condition | None:
    """The same for a query tree. Holds with and without `exact` and case: both only narrow the match."""
    match node:
        case Term(text):
            return _of_term(text)
        case Not():
            return None
        case And(operands):
            return all_of(required_by(operand) for operand in operands)
        case Or(operands):
            return any_of(required_by(operand) for operand in operands)


def _of_term(text: str) -> Condition | None:
    """Any of the forms of the accents that the search looks for, with all its pieces between wildcards."""
    text = text.strip().strip("*").strip()
    forms = {text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))}
    # The search lets a run of white space match any other, and the index takes every one for one space.
    return any_of(all_of(literal(piece) for piece in " ".join(form.split()).split("*")) for form in sorted(forms))
