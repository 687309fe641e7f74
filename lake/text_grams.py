"""Grams: the short runs of characters by which the text index tells texts apart, as hashes, and how characters are made alike."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_NARROW: Final = (3, 4, 5, 7)
_WIDE: Final = (2, 5)
"""Few kinds: each costs as many bits as the text has characters, and tells little that its neighbour does not."""
_FIRST_WIDE: Final = 0x2E80
_ROWS_AT_ONCE: Final = 1024
"""So few that the arrays in between stay in the processor's cache."""
_SPACE: Final = 0x20
_BREAK: Final = 0
"""Stands between texts and for characters whose case is not known here; no gram has it."""

_CASED: Final = ((0, 0x3040), (0xA000, 0xAC00), (0xF900, 0x20000))
"""Where letters with case, white space and code points that may become such lie."""


Codes = npt.NDArray[np.uint32]
Numbers = npt.NDArray[np.uint64]


def numbers_of(text: str) -> tuple[int, ...]:
    """The grams that every text has in which `text` occurs, in any case: numbers of 32 bits, none when it is too short."""
    codes = _folded(np.frombuffer(text.encode("utf-32-le"), np.uint32))
    kinds: dict[bool, list[Numbers]] = {False: [], True: []}
    for wide, numbers in grams(codes):
        if len(numbers):
            kinds[wide].append(numbers)
    # The longest first: they are the ones that texts without the word are least likely to have.
    chosen = [number for kind in kinds.values() for numbers in reversed(kind) for number in numbers.tolist()]
    return tuple(dict.fromkeys(chosen))


def codes_of(texts: pa.ChunkedArray) -> Iterator[Codes]:
    """The folded characters of some texts at a time, with a break between any two."""
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        part = texts.slice(start, _ROWS_AT_ONCE).drop_null().combine_chunks()
        if len(part) == 0:
            continue
        lists = pa.ListArray.from_arrays(pa.array([0, len(part)], pa.int32()), part)
        joined = pc.binary_join(lists, chr(_BREAK))[0].as_py()
        yield _folded(np.frombuffer(joined.encode("utf-32-le"), np.uint32))


def _folded(codes: Codes) -> Codes:
    """Characters as the index compares them: without case, each run of white space as one space."""
    folded = _folding()[codes]
    space = folded == _SPACE
    again = space[1:] & space[:-1]
    return folded if not again.any() else folded[np.concatenate(([True], ~again))[: len(folded)]]


def grams(codes: Codes) -> Iterator[tuple[bool, Numbers]]:
    """The grams of each kind, by rising width: whether they begin wide, and their numbers of 32 bits, one or two each."""
    wide = codes >= _FIRST_WIDE
    state = np.zeros(len(codes), np.uint64)
    whole = np.ones(len(codes), np.bool_)
    for width in range(1, max(_NARROW[-1], _WIDE[-1]) + 1):
        count = len(codes) - width + 1
        if count <= 0:
            break
        last = codes[width - 1 :]
        state = (state[:count] ^ last) * np.uint64(0x9E3779B97F4A7C15)
        state ^= state >> np.uint64(29)
        whole = whole[:count] & (last != _BREAK)
        if width not in _NARROW and width not in _WIDE:
            continue
        hashes = (state + np.uint64(width)) * np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(32)
        for is_wide, widths, starts in ((False, _NARROW, ~wide[:count]), (True, _WIDE, wide[:count])):
            if width in widths:
                # A short word of a wide script has one or two of the longest grams: one bit each would not tell enough.
                yield is_wide, _numbers(hashes[starts & whole], twice=is_wide or width < widths[-1])


def _numbers(hashes: Numbers, *, twice: bool) -> Numbers:
    lower = hashes & np.uint64(0xFFFFFFFF)
    return np.concatenate((lower, hashes >> np.uint64(32))) if twice else lower


@cache
def _folding() -> Codes:
    """Code point → the one that stands for all that differ from it in case only (and perhaps for some more)."""
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    parent: dict[int, int] = {}

    def root(code: int) -> int:
        while code in parent:
            code = parent[code]
        return code

    for first, end in _CASED:
        for code in range(first, end):
            char = chr(code)
            category = unicodedata.category(char)
            if char.isspace() or category[0] == "Z":
                table[code] = _SPACE
            elif category == "Cn":
                # A later Unicode may give it a case that the search engine knows already.
                table[code] = _BREAK
            for other in {char.lower(), char.upper(), char.title(), char.casefold()}:
                if other != char and len(other) == 1:
                    low, high = sorted((root(code), root(ord(other))))
                    if low != high:
                        parent[high] = low
    for code in parent:
        table[code] = root(code)
    return table
