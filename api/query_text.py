"""The search language: words, "phrases", OR, NOT or -, groups and * wildcards, read into a tree and compiled for RE2.

    query   = and ("OR" and)*
    and     = not ("AND"? not)*          a space means AND and binds tighter than OR
    not     = ("NOT" | "-")? atom
    atom    = "(" query ")" | '"' phrase '"' | word

OR, AND and NOT are operators in capitals only. A minus negates when it starts a word, phrase or group. Inside a phrase
`\\"` is a quote, and any run of white space matches any other. `*` stands for any run of characters without a space.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MAX_CHARACTERS: Final = 2000
MAX_TERMS: Final = 50
MAX_DEPTH: Final = 20


class QueryTextError(ValueError):
    """The query text cannot be read; the message names the position (from 1) and the remedy."""


@dataclass(frozen=True, slots=True)
class Term:
    """A word or phrase as typed, without its quotes; `*` is a wildcard."""

    text: str


@dataclass(frozen=True, slots=True)
class Not:
    """Everything that the operand does not match."""

    operand: Node


@dataclass(frozen=True, slots=True)
class And:
    """Everything that all operands match."""

    operands: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Everything that at least one operand matches."""

    operands: tuple[Node, ...]


Node = Term | Not | And | Or


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


_OPERATORS: Final = {"OR", "AND", "NOT"}


def _tokens(query: str) -> Iterator[_Token]:
    position = 0
    while position < len(query):
        char = query[position]
        if char.isspace():
            position += 1
        elif char in "()":
            yield _Token(char, char, position)
            position += 1
        elif char == '"':
            text, end = _phrase(query, position)
            yield _Token("term", text, position)
            position = end
        elif (
            char == "-"
            and position + 1 < len(query)
            and not query[position + 1].isspace()
            and query[position + 1] != ")"
        ):
            yield _Token("NOT", char, position)
            position += 1
        else:
            end = position
            while end < len(query) and not query[end].isspace() and query[end] not in '()"':
                end += 1
            word = query[position:end]
            yield _Token(word if word in _OPERATORS else "term", word, position)
            position = end


def _phrase(query: str, start: int) -> tuple[str, int]:
    characters = []
    position = start + 1
    while position < len(query):
        char = query[position]
        if char == "\\" and query[position + 1 : position + 2] in ('"', "\\"):
            characters.append(query[position + 1])
            position += 2
        elif char == '"':
            return "".join(characters), position + 1
        else:
            characters.append(char)
            position += 1
    raise QueryTextError(
        f'the quote opened at character {start + 1} is never closed: add a ", or write \\" for a literal one'
    )


class _Parser:
    def __init__(self, tokens: list[_Token], length: int) -> None:
        self._tokens = tokens
        self._next = 0
        self._length = length

    def parse(self) -> Node:
        node = self._or(0)
        if (token := self._peek()) is not None:
            raise QueryTextError(f"')' at character {token.position + 1} closes nothing: remove it or quote it")
        return node

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, kind: str) -> bool:
        token = self._peek()
        if token is None or token.kind != kind:
            return False
        self._next += 1
        return True

    def _or(self, depth: int) -> Node:
        operands = [self._and(depth)]
        while self._take("OR"):
            operands.append(self._and(depth))
        return operands[0] if len(operands) == 1 else Or(tuple(operands))

    def _and(self, depth: int) -> Node:
        operands = [self._not(depth)]
        while (token := self._peek()) is not None and token.kind not in (")", "OR"):
            self._take("AND")
            operands.append(self._not(depth))
        return operands[0] if len(operands) == 1 else And(tuple(operands))

    def _not(self, depth: int) -> Node:
        negated = False
        while self._take("NOT"):
            negated = not negated
        atom = self._atom(depth)
        return Not(atom) if negated else atom

    def _atom(self, depth: int) -> Node:
        token = self._peek()
        if token is None:
            raise QueryTextError(
                "the query ends where a word, a phrase or a group should follow: complete or remove the last operator"
            )
        self._next += 1
        if token.kind == "(":
            if depth >= MAX_DEPTH:
                raise QueryTextError(f"groups are nested more than {MAX_DEPTH} deep: flatten the query")
            node = self._or(depth + 1)
            if not self._take(")"):
                raise QueryTextError(f"the group opened at character {token.position + 1} is never closed: add a ')'")
            return node
        if token.kind != "term":
            raise QueryTextError(
                f"{token.text!r} at character {token.position + 1} stands where a word, a phrase or a group should: "
                "remove it, or quote it to search for it"
            )
        if not token.text.replace("*", "").strip():
            raise QueryTextError(
                f"the term at character {token.position + 1} is empty or only wildcards: it would match every post"
            )
        return Term(token.text)


def parse(query: str) -> Node:
    """Read a query into its tree; QueryTextError when it is empty, too long, malformed or has an unencodable character."""
    if len(query) > MAX_CHARACTERS:
        raise QueryTextError(f"the query has {len(query)} characters: {MAX_CHARACTERS} are allowed")
    try:
        query.encode()
    except UnicodeEncodeError as error:
        raise QueryTextError(
            f"character {error.start + 1} is half of a surrogate pair: send well-formed Unicode"
        ) from None
    tokens = list(_tokens(query))
    if not tokens:
        raise QueryTextError("the query is empty: leave the parameter out to match every post")
    if sum(token.kind == "term" for token in tokens) > MAX_TERMS:
        raise QueryTextError(f"the query has more than {MAX_TERMS} words and phrases: split it into several queries")
    return _Parser(tokens, len(query)).parse()


_SPACE: Final = r"\s\v\x{1c}-\x{1f}\x{85}\p{Z}"
"""What Python calls white space: RE2's own class is ASCII only."""
_SPACELESS: Final = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LEFT_EDGE: Final = rf"(?:^|[^\p{{L}}\p{{N}}\p{{M}}_]|[{_SPACELESS}])"
_RIGHT_EDGE: Final = rf"(?:$|[^\p{{L}}\p{{N}}\p{{M}}_]|[{_SPACELESS}])"

# Ranges of the scripts in _SPACELESS: good enough to decide about the edge of a term, which is all they are used for.
_SPACELESS_RANGES: Final = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3038, 0x303B),
    (0x3041, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAA7F),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x16FE2, 0x16FF1),
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
)


def _needs_edge(char: str) -> bool:
    """Whether `exact` asks for a word boundary beside this character of a term."""
    code = ord(char)
    if any(low <= code <= high for low, high in _SPACELESS_RANGES):
        return False
    return char == "_" or unicodedata.category(char)[0] in "LNM"


def _literal(text: str) -> str:
    """RE2 pattern of a literal text: every ASCII character that is not a letter or digit is escaped."""
    parts = []
    for char in text:
        if char.isascii() and not char.isalnum():
            parts.append(f"\\x{{{ord(char):x}}}" if ord(char) < 32 or ord(char) == 127 else "\\" + char)
        else:
            parts.append(char)
    return "".join(parts)


def _pattern(text: str) -> str:
    words = text.split()
    return f"[{_SPACE}]+".join(f"[^{_SPACE}]*".join(_literal(piece) for piece in word.split("*")) for word in words)


def term_pattern(term: Term, *, exact: bool) -> str:
    """RE2 pattern that finds a term; composed and decomposed accents match each other.

    `exact` adds word boundaries at both ends, except beside a wildcard, punctuation, or a script that writes no spaces
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese), where a boundary has no meaning.
    """
    text = term.text.strip()
    # A lone wildcard at an end changes nothing in a substring search and removes the boundary in an exact one.
    left, right = not text.startswith("*"), not text.endswith("*")
    text = text.strip("*").strip()
    forms = dict.fromkeys(unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    forms.setdefault(text)
    body = "|".join(_pattern(form) for form in forms)
    pattern = f"(?:{body})" if len(forms) > 1 else body
    if exact:
        if left and _needs_edge(text[0]):
            pattern = _LEFT_EDGE + pattern
        if right and _needs_edge(text[-1]):
            pattern += _RIGHT_EDGE
    return pattern


def alternation(terms: tuple[Term, ...], *, exact: bool) -> str:
    """One RE2 pattern that finds any of the terms: several times faster than one expression each."""
    return "|".join(f"(?:{term_pattern(term, exact=exact)})" for term in terms)
