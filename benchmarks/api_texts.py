"""Texts of posts for `benchmarks.api_lake`: Zipf words of eleven languages, with rare ones that only some days have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulator.vocabulary import build_vocabularies

_TAIL_STEP: Final = 0.4
"""Share of the window of rare words that a day replaces."""


@dataclass(frozen=True)
class Language:
    """Words by falling frequency: those of the simulator, then a window of `window` rare ones, another one each day."""

    tag: str
    share: float
    glue: str
    known: tuple[str, ...]
    window: int

    def tail(self, number: int) -> str:
        """The rare word of a number."""
        rng = np.random.default_rng([number, *self.tag.encode()])
        return "".join(self.known[place] for place in rng.integers(120, len(self.known), 2))

    def first_rare(self, day: int) -> int:
        """Number of the first rare word of a day's window."""
        return int(day * self.window * _TAIL_STEP)


@cache
def languages() -> tuple[Language, ...]:
    """All languages; the shares add up to one."""
    found = build_vocabularies()
    total = sum(one.share for one in found)
    return tuple(
        Language(
            one.tag,
            one.share / total,
            one.glue.decode(),
            tuple(word.decode() for word in one.words),
            40_000 if one.share > 0.1 else 8_000,
        )
        for one in found
    )


def rare_word(day: int, tag: str = "en", place: float = 0.5) -> str:
    """A word that some dozen posts of a day (and one or two before or after it) hold; `place` 0 is the most frequent."""
    language = next(one for one in languages() if one.tag == tag)
    return language.tail(language.first_rare(day) + int(place * (language.window - 1)))


def known_word(rank: int, tag: str = "en") -> str:
    """A word of every hour; rank 0 is the most frequent."""
    return next(one for one in languages() if one.tag == tag).known[rank]


def unindexed(rank: int) -> str:
    """A term that hardly occurs and that no index of runs of characters knows: its pieces between wildcards are of two letters."""
    return f"{known_word(rank)[:2]}*qx*zj"


class Texts:
    """Writes texts of one language; keeps the window of one day."""

    def __init__(self, language: Language) -> None:
        self.language = language
        ranks = np.arange(len(language.known) + language.window)
        self._cumulative = np.cumsum(1 / (ranks + 2.7) ** 1.07)
        self._cumulative /= self._cumulative[-1]
        self._day = -1
        self._tails: dict[int, str] = {}
        self._words = pa.array([], pa.string())

    def write(self, rng: np.random.Generator, day: int, rows: int) -> pa.Array:
        """That many texts of a day."""
        if day != self._day:
            first = self.language.first_rare(day)
            numbers = range(first, first + self.language.window)
            self._tails = {number: self._tails.get(number) or self.language.tail(number) for number in numbers}
            self._words = pa.array([*self.language.known, *self._tails.values()], pa.string())
            self._day = day
        lengths = np.clip(rng.lognormal(2.2, 0.8, rows), 1, 45).astype(np.int32)
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        picks = np.searchsorted(self._cumulative, rng.random(int(offsets[-1])))
        lists = pa.ListArray.from_arrays(pa.array(offsets), self._words.take(pa.array(picks)))
        texts = pc.binary_join(lists, self.language.glue)
        ends = pa.array([".", "!", "?", "", "…", " 😂"]).take(pa.array(rng.integers(0, 6, rows)))
        whole = pc.binary_join_element_wise(texts, ends, "")
        return pc.if_else(pa.array(rng.random(rows) < 0.6), pc.utf8_capitalize(whole), whole)
