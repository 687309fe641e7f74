"""Served blocks: decoded and encoded for each wire once, kept in a bounded cache that all subscribers share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from simulator.dictionary import Dictionary
from simulator.events import RESYNC, SYNC
from simulator.flaws import broken
from simulator.log import Block, BlockInfo, read_block
from simulator.wire import BINARY, TEXT, framed, v1_frame


@dataclass(frozen=True)
class Encoded:
    """A block as one wire carries it: complete WebSocket frames, b"" where the wire hides an event; text sizes for size limits."""

    messages: list[bytes]
    sizes: list[int]
    hidden: bool = False


class BlockCache:
    """Least recently used blocks within a budget of bytes."""

    def __init__(self, budget: int, *, v1_cursor: bool) -> None:
        self._budget = budget
        self._v1_cursor = v1_cursor
        self._used = 0
        self._entries: OrderedDict[tuple[int, int, int], tuple[Block | Encoded, int]] = OrderedDict()

    def set_v1_cursor(self, *, wanted: bool) -> None:
        """Switch the `cursor` member of v1 events; blocks encoded before are forgotten."""
        self._v1_cursor = wanted
        self._entries.clear()
        self._used = 0

    def block(self, info: BlockInfo) -> Block:
        """The decoded block."""
        key = (info.position, 0, 0)
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            assert isinstance(found[0], Block)
            return found[0]
        block = read_block(info)
        self._keep(key, block, sum(map(len, block.frames)) + 150 * info.events)
        return block

    def encoded(self, info: BlockInfo, version: int, dictionary: Dictionary | None) -> Encoded:
        """The block for one wire and compression."""
        key = (info.position, version, dictionary.number if dictionary else 0)
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
            assert isinstance(found[0], Encoded)
            return found[0]
        encoded = encode(self.block(info), version, dictionary, v1_cursor=self._v1_cursor)
        self._keep(key, encoded, sum(map(len, encoded.messages)) + 80 * info.events)
        return encoded

    def _keep(self, key: tuple[int, int, int], value: Block | Encoded, size: int) -> None:
        self._entries[key] = (value, size)
        self._used += size
        while self._used > self._budget and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self._used -= freed


def encode(block: Block, version: int, dictionary: Dictionary | None, *, v1_cursor: bool) -> Encoded:
    """All events of a block as WebSocket messages of one wire."""
    texts: list[bytes | None] = list(block.frames)
    if version == 1:
        rows = zip(block.frames, block.seqs, block.times, block.kinds, strict=True)
        texts = [
            None if kind in (SYNC, RESYNC) else v1_frame(frame, seq, time_us, cursor=v1_cursor)
            for frame, seq, time_us, kind in rows
        ]
    if any(block.flaws):
        texts = [
            broken(text, flaw, seq) if flaw and text is not None else text
            for text, flaw, seq in zip(texts, block.flaws, block.seqs, strict=True)
        ]
    shown = [text for text in texts if text is not None]
    payloads = shown if dictionary is None else [dictionary.compress(text) for text in shown]
    messages = framed(payloads, TEXT if dictionary is None else BINARY)
    sizes = [len(text) for text in shown]
    if len(shown) == len(texts):
        return Encoded(messages, sizes)
    places = iter(range(len(shown)))
    order = [next(places) if text is not None else -1 for text in texts]
    return Encoded(
        [messages[at] if at >= 0 else b"" for at in order], [sizes[at] if at >= 0 else 0 for at in order], hidden=True
    )
