"""Who exists in the synthetic network and which of their records later events may refer to. Memory is bounded everywhere."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from simulator.ids import random_cids, random_dids, tid_texts

Record = tuple[int, bytes, bytes]  # account index, its DID at the time, record key
Reference = tuple[bytes, bytes]  # strongRef JSON of a post, strongRef JSON of its thread's root


class RecordPool:
    """A bounded random sample of the live records of one collection; when full, a new one replaces a random one."""

    def __init__(self, limit: int, draw: random.Random) -> None:
        self._limit = limit
        self._draw = draw
        self.records: list[Record] = []

    def add(self, record: Record) -> None:
        """Remember a record that was just created."""
        if len(self.records) < self._limit:
            self.records.append(record)
        else:
            self.records[int(self._draw.random() * self._limit)] = record

    def take(self) -> Record | None:
        """Remove and return a random record, None when there is none."""
        records = self.records
        if not records:
            return None
        at = int(self._draw.random() * len(records))
        last = records.pop()
        if at == len(records):
            return last
        taken, records[at] = records[at], last
        return taken

    def discard(self, did: bytes, rkey: bytes) -> None:
        """Forget one record by name; linear, for recovery only."""
        self.records = [record for record in self.records if record[2] != rkey or record[1] != did]


class Population:
    """Accounts, their last revs, their single records (`self`), live records and recently seen posts.

    An account that is deleted leaves for good: its place is taken by a new DID, so its records in the pools (which carry the
    old DID) are recognised as gone and dropped when they are drawn.
    """

    def __init__(self, seed: int, accounts: int, live_records: int, draw: random.Random) -> None:
        self._draw = draw
        self._live_records = live_records
        bulk = np.random.default_rng([seed, 1])
        self.dids = random_dids(bulk, accounts)
        self.replaced: dict[int, bytes] = {}
        self.last_revs = [0] * accounts
        self.rev_floor = 0
        self.hidden: dict[int, str] = {}
        self.singles: dict[str, set[int]] = {}
        self.pools: dict[str, RecordPool] = {}
        self.posts: list[Reference] = []
        self.reposts: list[bytes] = []
        self._seed_references(bulk)

    def pool(self, collection: str) -> RecordPool:
        """The pool of a collection, made on first use."""
        pool = self.pools.get(collection)
        if pool is None:
            pool = self.pools[collection] = RecordPool(self._live_records, self._draw)
        return pool

    def take_live(self, collection: str) -> Record | None:
        """A random existing record whose account still exists and is visible, removed from the pool; None if none is found soon."""
        pool = self.pools.get(collection)
        if pool is None:
            return None
        for _ in range(20):
            record = pool.take()
            if record is None:
                return None
            if self.dids[record[0]] != record[1]:
                continue
            if record[0] in self.hidden:
                pool.add(record)
                continue
            return record
        return None

    def replace_account(self, account: int, did: bytes) -> None:
        """The account is gone for good; a newcomer takes its place."""
        self.dids[account] = did
        self.replaced[account] = did
        self.hidden.pop(account, None)
        for owners in self.singles.values():
            owners.discard(account)

    def state(self) -> dict[str, Any]:
        """Everything a restart needs, as plain values for msgpack."""
        return {
            "replaced": list(self.replaced.items()),
            "hidden": list(self.hidden.items()),
            "singles": {name: sorted(owners) for name, owners in self.singles.items()},
            "pools": {name: pool.records for name, pool in self.pools.items()},
            "posts": self.posts,
            "reposts": self.reposts,
            "last_revs": self.last_revs,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        for account, did in state["replaced"]:
            self.dids[account] = did
            self.replaced[account] = did
        self.hidden = dict(state["hidden"])
        self.singles = {name: set(owners) for name, owners in state["singles"].items()}
        for name, records in state["pools"].items():
            self.pool(name).records = [tuple(record) for record in records]
        self.posts = [tuple(pair) for pair in state["posts"]]
        self.reposts = list(state["reposts"])
        self.last_revs = list(state["last_revs"])

    def index(self) -> dict[bytes, int]:
        """Account index by DID; built on demand, for recovery only."""
        return {did: account for account, did in enumerate(self.dids)}

    def _seed_references(self, bulk: np.random.Generator) -> None:
        """Posts from before the log began, so that the first likes have something to like."""
        count = self._live_records
        authors = bulk.integers(0, len(self.dids), count).tolist()
        keys = tid_texts(
            (bulk.integers(1_760_000_000_000_000, 1_780_000_000_000_000, count) << 10) + bulk.integers(0, 1024, count)
        )
        for author, cid, key in zip(authors, random_cids(bulk, count), keys, strict=True):
            reference = strong_reference(cid, self.dids[author], b"app.bsky.feed.post", key)
            self.posts.append((reference, reference))
        for author, cid, key in zip(authors, random_cids(bulk, count), keys, strict=True):
            self.reposts.append(strong_reference(cid, self.dids[author], b"app.bsky.feed.repost", key))


def strong_reference(cid: bytes, did: bytes, collection: bytes, rkey: bytes) -> bytes:
    """JSON of a com.atproto.repo.strongRef."""
    return b'{"cid":"%b","uri":"at://%b/%b/%b"}' % (cid, did, collection, rkey)
