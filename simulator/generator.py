"""The event generator: a deterministic stream of v2 frames from a seeded synthetic network.

Speed matters because end-to-end benchmarks share two cores with it: randomness, identifiers and time texts are drawn in bulk
with numpy, JSON is formatted straight into bytes, and the frequent kinds are handled inline.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np

from simulator.config import SimulatorSettings
from simulator.dag_cbor import record_cid
from simulator.flaws import FLAWS
from simulator.ids import random_cids, random_dids, tid_text, tid_texts, time_texts, zipf_indexes
from simulator.mix import DELETE_COLLECTIONS, EVENT_TYPES, KNOWN, SINGLE_KEYS, UPDATE_COLLECTIONS
from simulator.population import Population, RecordPool, strong_reference
from simulator.records import RecordWriter
from simulator.text import TextSource

CREATE, UPDATE, DELETE, IDENTITY, ACCOUNT, SYNC, RESYNC = 1, 2, 3, 4, 5, 6, 7
OPERATIONS = {CREATE: b"create", UPDATE: b"update", DELETE: b"delete", RESYNC: b"create"}
KIND_NAMES = {
    CREATE: "commit",
    UPDATE: "commit",
    DELETE: "commit",
    IDENTITY: "identity",
    ACCOUNT: "account",
    SYNC: "sync",
    RESYNC: "commit",
}

_HEAD = b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#'
_COMMIT = (
    _HEAD
    + b'commit","cid":"%b","collection":"%b","did":"%b","operation":"%b","record":%b,"rev":"%b","rkey":"%b","seq":%d,"time":"%b"}}'
)
_DELETE = (
    _HEAD + b'commit","collection":"%b","did":"%b","operation":"delete","rev":"%b","rkey":"%b","seq":%d,"time":"%b"}}'
)
_IDENTITY = _HEAD + b'identity","did":"%b","identity":{"did":"%b",%b"seq":%d,"time":"%b"},"seq":%d,"time":"%b"}}'
_ACCOUNT = (
    _HEAD + b'account","account":{"active":%b,"did":"%b","seq":%d,%b"time":"%b"},"did":"%b","seq":%d,"time":"%b"}}'
)
_SYNC = (
    _HEAD
    + b'sync","did":"%b","seq":%d,"sync":{"blocks":{"$bytes":"%b"},"did":"%b","rev":"%b","seq":%d,"time":"%b"},"time":"%b"}}'
)
_LIKE = b'{"$type":"app.bsky.feed.like","createdAt":"%b","subject":%b}'
_LIKE_VIA = b'{"$type":"app.bsky.feed.like","createdAt":"%b","subject":%b,"via":%b}'
_REPOST = b'{"$type":"app.bsky.feed.repost","createdAt":"%b","subject":%b}'
_REPOST_VIA = b'{"$type":"app.bsky.feed.repost","createdAt":"%b","subject":%b,"via":%b}'
_FOLLOW = b'{"$type":"app.bsky.graph.follow","createdAt":"%b","subject":"%b"}'
RELAY_SEQ = 31_000_000_000  # the relay's numbering is another one than Jetstream's

_NAMES = tuple(name for name, _ in EVENT_TYPES)
_CUMULATIVE = np.cumsum([share for _, share in EVENT_TYPES])
_TYPE = {name: code for code, name in enumerate(_NAMES)}
_AUTHOR_EXPONENT = 0.75
_SUBJECT_EXPONENT = 0.82
_POOL_STEP = 4  # of the very frequent likes only every fourth is remembered as a target of deletes


@dataclass
class Batch:
    """Consecutive events: their v2 frames and what the log and the ledger need to know without parsing them."""

    frames: list[bytes] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    kinds: bytearray = field(default_factory=bytearray)
    flaws: bytearray = field(default_factory=bytearray)  # 0 = sound, otherwise how the wire breaks the frame
    tables: list[str] = field(default_factory=list)

    def add(self, frame: bytes, seq: int, time_us: int, kind: int, table: str, flaw: int = 0) -> None:
        """Append one event."""
        self.frames.append(frame)
        self.seqs.append(seq)
        self.times.append(time_us)
        self.kinds.append(kind)
        self.flaws.append(flaw)
        self.tables.append(table)

    def __len__(self) -> int:
        return len(self.frames)


class Generator:
    """Makes events; not thread-safe. `next_seq` is the sequence number of the next event."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self._draw = random.Random(settings.seed)
        self._bulk = np.random.Generator(np.random.PCG64(settings.seed))
        self.population = Population(settings.seed, settings.accounts, settings.live_records, self._draw)
        self.text = TextSource(settings.seed, self._bulk, self._draw)
        self.records = RecordWriter(self.population, self.text, self._bulk, self._draw)
        self.next_seq = settings.first_seq

    def batch(self, slots: int, start_us: int, end_us: int) -> Batch:
        """Events of about `slots` commits with times spread evenly over [start_us, end_us)."""
        out = Batch()
        bulk, population, settings = self._bulk, self.population, self._settings
        times_array = start_us + np.sort(bulk.integers(0, max(1, end_us - start_us), slots))
        revs_array = ((times_array - bulk.integers(90_000, 1_600_000, slots)) << 10) | bulk.integers(0, 1024, slots)
        keys_array = revs_array - (bulk.integers(1_000, 300_000, slots) << 10)
        types: list[int] = np.searchsorted(_CUMULATIVE, bulk.random(slots) * _CUMULATIVE[-1], side="right").tolist()
        authors = zipf_indexes(bulk, slots, len(population.dids), _AUTHOR_EXPONENT)
        subjects = zipf_indexes(bulk, slots, len(population.posts), _SUBJECT_EXPONENT)
        chances: list[float] = bulk.random(slots).tolist()
        broken: list[bool] = (
            (bulk.random(slots) < settings.malformed_share).tolist() if settings.malformed_share else []
        )
        times: list[int] = times_array.tolist()
        time_text = time_texts(times_array, "us")
        created_text = time_texts(keys_array >> 10, "ms")
        revs: list[int] = revs_array.tolist()
        rev_text = tid_texts(revs_array)
        key_text = tid_texts(keys_array)
        cids = random_cids(bulk, slots)
        dids, hidden, posts, last_revs, floor = (
            population.dids,
            population.hidden,
            population.posts,
            population.last_revs,
            population.rev_floor,
        )
        reposts = population.reposts
        like_pool, repost_pool, follow_pool, post_pool = (
            population.pool(f"app.bsky.{name}") for name in ("feed.like", "feed.repost", "graph.follow", "feed.post")
        )
        frames, seqs, out_times, kinds, flaws, tables = (
            out.frames,
            out.seqs,
            out.times,
            out.kinds,
            out.flaws,
            out.tables,
        )
        like, repost, follow, post = _TYPE["like"], _TYPE["repost"], _TYPE["follow"], _TYPE["post"]
        content_cids = settings.content_cids
        seq = self.next_seq
        for at in range(slots):
            account = authors[at]
            while account in hidden:
                account = int(self._draw.random() * len(dids))
            did = dids[account]
            rev, rev_bytes = revs[at], rev_text[at]
            last = last_revs[account]
            if rev <= last or rev <= floor:
                rev = max(last, floor) + 1 + int(chances[at] * 1000)
                rev_bytes = tid_text(rev)
            kind = types[at]
            chance = chances[at]
            if kind == like:
                subject = posts[subjects[at]][0]
                if chance < 0.13:
                    record = _LIKE_VIA % (created_text[at], subject, reposts[int(chance * 7000)])
                else:
                    record = _LIKE % (created_text[at], subject)
                collection, table = b"app.bsky.feed.like", "app.bsky.feed.like"
                if not at % _POOL_STEP:
                    like_pool.add((account, did, key_text[at]))
                cid = record_cid(record) if content_cids else cids[at]
            elif kind == repost:
                subject = posts[subjects[at]][0]
                if chance < 0.22:
                    record = _REPOST_VIA % (created_text[at], subject, reposts[int(chance * 4500)])
                else:
                    record = _REPOST % (created_text[at], subject)
                collection, table = b"app.bsky.feed.repost", "app.bsky.feed.repost"
                repost_pool.add((account, did, key_text[at]))
                cid = record_cid(record) if content_cids else cids[at]
                reposts[int(chance * 1000)] = strong_reference(cid, did, collection, key_text[at])
            elif kind == follow:
                record = _FOLLOW % (created_text[at], dids[subjects[at] % len(dids)])
                collection, table = b"app.bsky.graph.follow", "app.bsky.graph.follow"
                follow_pool.add((account, did, key_text[at]))
                cid = record_cid(record) if content_cids else cids[at]
            elif kind == post:
                record, root = self.records.post(created_text[at])
                collection, table = b"app.bsky.feed.post", "app.bsky.feed.post"
                post_pool.add((account, did, key_text[at]))
                cid = record_cid(record) if content_cids else cids[at]
                reference = strong_reference(cid, did, collection, key_text[at])
                posts[int(chance * len(posts))] = (reference, root or reference)
            else:
                self.next_seq = seq
                self._rare(
                    out, _NAMES[kind], account, rev, key_text[at], cids[at], created_text[at], times[at], time_text[at]
                )
                seq = self.next_seq
                continue
            last_revs[account] = rev
            frames.append(
                _COMMIT % (cid, collection, did, b"create", record, rev_bytes, key_text[at], seq, time_text[at])
            )
            seqs.append(seq)
            out_times.append(times[at])
            kinds.append(1)
            flaws.append(1 + int(chance * 1e6) % len(FLAWS) if broken and broken[at] else 0)
            tables.append(table)
            seq += 1
        self.next_seq = seq
        return out

    def commit(
        self,
        out: Batch,
        kind: int,
        collection: str,
        did: bytes,
        rkey: bytes,
        rev: bytes,
        cid: bytes,
        record: bytes,
        time_us: int,
        stamp: bytes,
    ) -> None:
        """Append one commit event of any operation; `cid` and `record` are ignored for a delete."""
        seq = self.next_seq
        name = collection.encode()
        if kind == DELETE:
            frame = _DELETE % (name, did, rev, rkey, seq, stamp)
        else:
            if self._settings.content_cids:
                cid = record_cid(record)
            frame = _COMMIT % (cid, name, did, OPERATIONS[kind], record, rev, rkey, seq, stamp)
        out.add(frame, seq, time_us, kind, collection if collection in KNOWN else "other")
        self.next_seq = seq + 1

    def identity(self, out: Batch, did: bytes, handle: bytes | None, time_us: int, stamp: bytes) -> None:
        """Append an identity event; most real ones carry no handle."""
        seq = self.next_seq
        named = b'"handle":"%b",' % handle if handle else b""
        out.add(
            _IDENTITY % (did, did, named, RELAY_SEQ + seq, stamp[:23] + b"Z", seq, stamp),
            seq,
            time_us,
            IDENTITY,
            "identity",
        )
        self.next_seq = seq + 1

    def account(self, out: Batch, did: bytes, active: bool, status: str | None, time_us: int, stamp: bytes) -> None:
        """Append an account event; `status` None leaves the member out."""
        seq = self.next_seq
        named = b'"status":"%b",' % status.encode() if status else b""
        flag = b"true" if active else b"false"
        frame = _ACCOUNT % (flag, did, RELAY_SEQ + seq, named, stamp[:23] + b"Z", did, seq, stamp)
        out.add(frame, seq, time_us, ACCOUNT, "account")
        self.next_seq = seq + 1

    def sync(
        self, out: Batch, did: bytes, rev: bytes, blocks: bytes, time_us: int, stamp: bytes, *, synthetic: bool = False
    ) -> None:
        """Append a sync event; a synthetic one has relay seq 0 and an empty time, as the v2 server makes them itself."""
        seq = self.next_seq
        relay_seq, relay_time = (0, b"") if synthetic else (RELAY_SEQ + seq, stamp[:23] + b"Z")
        out.add(_SYNC % (did, seq, blocks, did, rev, relay_seq, relay_time, stamp), seq, time_us, SYNC, "sync")
        self.next_seq = seq + 1

    def next_rev(self, account: int, at_least: int) -> tuple[int, bytes]:
        """A rev for the account above all it had before."""
        rev = max(at_least, self.population.last_revs[account] + 1, self.population.rev_floor + 1)
        self.population.last_revs[account] = rev
        return rev, tid_text(rev)

    def state(self) -> dict[str, Any]:
        """What a restart needs to continue the very same stream."""
        return {
            "next_seq": self.next_seq,
            "bulk": _plain(self._bulk.bit_generator.state),
            "draw": list(self._draw.getstate()[1]),
            "population": self.population.state(),
        }

    def restore(self, state: dict[str, Any], last_time_us: int) -> None:
        """Inverse of `state`; revs continue above the time of the last event."""
        self.next_seq = state["next_seq"]
        self._bulk.bit_generator.state = _numbers(state["bulk"])
        self._draw.setstate((3, tuple(state["draw"]), None))
        self.population.restore(state["population"])
        self.population.rev_floor = last_time_us << 10

    def reseed(self, position: int) -> None:
        """After a crash the exact draws are lost: continue with ones that depend on seed and position only."""
        self._draw.seed(f"{self._settings.seed}/{position}")
        self._bulk.bit_generator.state = np.random.PCG64([self._settings.seed, position]).state

    def _rare(
        self,
        out: Batch,
        name: str,
        account: int,
        rev: int,
        rkey: bytes,
        cid: bytes,
        created: bytes,
        time_us: int,
        stamp: bytes,
    ) -> None:
        """Everything but the creation of likes, reposts, follows and posts."""
        population = self.population
        if name == "identity":
            did = population.dids[account]
            self.identity(out, did, self.text.handle(did) if self._draw.random() < 0.1 else None, time_us, stamp)
        elif name == "account":
            self._account_change(out, account, time_us, stamp)
        elif name == "sync":
            _, rev_bytes = self.next_rev(account, rev)
            did = population.dids[account]
            self.sync(out, did, rev_bytes, b"OqJlcm9vdHOB" + cid[3:59], time_us, stamp)
        elif name.startswith("delete "):
            self._delete(out, name[7:], rev, time_us, stamp)
        elif name == "update":
            self._update(out, rev, cid, created, time_us, stamp)
        elif name == "gated post":
            self._gated_post(out, account, rev, rkey, cid, created, time_us, stamp)
        else:
            self._create(out, name, account, rev, rkey, cid, created, time_us, stamp)

    def _create(
        self,
        out: Batch,
        collection: str,
        account: int,
        rev: int,
        rkey: bytes,
        cid: bytes,
        created: bytes,
        time_us: int,
        stamp: bytes,
    ) -> None:
        population = self.population
        single = SINGLE_KEYS.get(collection)
        if single is not None:
            owners = population.singles.setdefault(collection, set())
            if account in owners:
                account = int(self._draw.random() * len(population.dids))
                if account in owners or account in population.hidden:
                    return
            owners.add(account)
            rkey = single
        elif collection == "com.atproto.lexicon.schema":
            rkey = b"org.simulated.%b.%b" % (rkey[:6], rkey[6:])
        did = population.dids[account]
        record = self.records.rare[collection](created, rkey)
        _, rev_bytes = self.next_rev(account, rev)
        self.commit(out, CREATE, collection, did, rkey, rev_bytes, cid, record, time_us, stamp)
        population.pool(collection).add((account, did, rkey))

    def _gated_post(
        self, out: Batch, account: int, rev: int, rkey: bytes, cid: bytes, created: bytes, time_us: int, stamp: bytes
    ) -> None:
        """A post with its gates in one commit: three events of one rev, one record key and one time."""
        population = self.population
        did = population.dids[account]
        _, rev_bytes = self.next_rev(account, rev)
        uri = b"at://%b/app.bsky.feed.post/%b" % (did, rkey)
        names = ["app.bsky.feed.post", "app.bsky.feed.threadgate"]
        if self._draw.random() < 0.6:
            names.append("app.bsky.feed.postgate")
        for name in names:
            record = self.records.post(created)[0] if name == names[0] else self.records.rare[name](created, uri)
            own = cid if name == names[0] else random_cids(self._bulk, 1)[0]
            self.commit(out, CREATE, name, did, rkey, rev_bytes, own, record, time_us, stamp)
            population.pool(name).add((account, did, rkey))

    def _delete(self, out: Batch, collection: str, rev: int, time_us: int, stamp: bytes) -> None:
        if collection == "any":
            collection = self._draw.choice(DELETE_COLLECTIONS)
        taken = self.population.take_live(collection)
        if taken is None:
            return
        account, did, rkey = taken
        if collection in SINGLE_KEYS:
            self.population.singles[collection].discard(account)
        _, rev_bytes = self.next_rev(account, rev)
        self.commit(out, DELETE, collection, did, rkey, rev_bytes, b"", b"", time_us, stamp)

    def _update(self, out: Batch, rev: int, cid: bytes, created: bytes, time_us: int, stamp: bytes) -> None:
        names, weights = UPDATE_COLLECTIONS
        collection = self._draw.choices(names, weights)[0]
        taken = self.population.take_live(collection)
        if taken is None:
            return
        account, did, rkey = taken
        self.population.pool(collection).add(taken)
        if collection == "app.bsky.feed.post":
            record = self.records.post(created)[0]
        else:
            about = b"at://%b/app.bsky.feed.post/%b" % (did, rkey) if collection == "app.bsky.feed.threadgate" else rkey
            record = self.records.rare[collection](created, about)
        _, rev_bytes = self.next_rev(account, rev)
        self.commit(out, UPDATE, collection, did, rkey, rev_bytes, cid, record, time_us, stamp)

    def _account_change(self, out: Batch, account: int, time_us: int, stamp: bytes) -> None:
        population = self.population
        chance = self._draw.random()
        did = population.dids[account]
        if chance < 0.30:
            self.account(out, did, False, "deleted", time_us, stamp)
            population.replace_account(account, random_dids(self._bulk, 1)[0])
        elif chance < 0.55 and population.hidden:
            hidden = next(iter(population.hidden))
            del population.hidden[hidden]
            self.account(out, population.dids[hidden], True, None, time_us, stamp)
        elif chance < 0.80 and len(population.hidden) < len(population.dids) // 20:
            status = "deactivated" if chance < 0.72 else "takendown" if chance < 0.77 else "suspended"
            population.hidden[account] = status
            self.account(out, did, False, status, time_us, stamp)
        else:
            self.account(out, did, True, None, time_us, stamp)


def digest_of(frames: list[bytes]) -> str:
    """SHA-256 over frames, to compare two runs of one seed."""
    total = sha256()
    for frame in frames:
        total.update(frame)
    return total.hexdigest()


def _plain(state: Any) -> dict[str, Any]:
    inner = state["state"]
    return {**state, "state": {"state": str(inner["state"]), "inc": str(inner["inc"])}}


def _numbers(state: dict[str, Any]) -> dict[str, Any]:
    inner = state["state"]
    return {**state, "state": {"state": int(inner["state"]), "inc": int(inner["inc"])}}


__all__ = [
    "ACCOUNT",
    "CREATE",
    "DELETE",
    "IDENTITY",
    "KIND_NAMES",
    "RESYNC",
    "SYNC",
    "UPDATE",
    "Batch",
    "Generator",
    "RecordPool",
    "digest_of",
]
