"""The event generator: a deterministic stream of v2 frames from a seeded synthetic network.

Speed matters because end-to-end benchmarks share two cores with it: randomness, identifiers and time texts are drawn in bulk
with numpy, JSON is formatted straight into bytes, and the frequent kinds are handled inline.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from simulator.config import SimulatorSettings
from simulator.dag_cbor import follow_cid, subject_cid
from simulator.events import COMMIT_FRAME, CREATE, Batch, EventWriter, Moment
from simulator.flaws import FLAWS
from simulator.ids import random_cids, tid_text, tid_texts, time_texts, zipf_indexes
from simulator.mix import EVENT_TYPES
from simulator.population import Population, strong_reference
from simulator.rare import RareEvents, Slot
from simulator.records import RecordWriter
from simulator.text import TextSource

_LIKE = b'{"$type":"app.bsky.feed.like","createdAt":"%b","subject":%b}'
_LIKE_VIA = b'{"$type":"app.bsky.feed.like","createdAt":"%b","subject":%b,"via":%b}'
_REPOST = b'{"$type":"app.bsky.feed.repost","createdAt":"%b","subject":%b}'
_REPOST_VIA = b'{"$type":"app.bsky.feed.repost","createdAt":"%b","subject":%b,"via":%b}'
_FOLLOW = b'{"$type":"app.bsky.graph.follow","createdAt":"%b","subject":"%b"}'
_LIKE_NAME, _REPOST_NAME, _FOLLOW_NAME, _POST_NAME = (
    "app.bsky.feed.like",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.feed.post",
)

_NAMES = tuple(name for name, _ in EVENT_TYPES)
_CUMULATIVE = np.cumsum([share for _, share in EVENT_TYPES])
_LIKE_TYPE, _POST_TYPE, _REPOST_TYPE, _FOLLOW_TYPE = (
    _NAMES.index(name) for name in ("like", "post", "repost", "follow")
)
_AUTHOR_EXPONENT = 0.75
_SUBJECT_EXPONENT = 0.82
_POOL_STEP = 4  # of the very frequent likes only every fourth is remembered as a target of deletes
_VIA_LIKES, _VIA_REPOSTS = 0.22, 0.45  # shares that came through somebody's repost


class Generator:
    """Makes events; not thread-safe. `events.next_seq` is the sequence number of the next event."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self._settings = settings
        self.draw = random.Random(settings.seed)
        self.bulk = np.random.Generator(np.random.PCG64(settings.seed))
        self.population = Population(settings.seed, settings.accounts, settings.live_records, self.draw)
        self.text = TextSource(settings.seed, self.bulk, self.draw)
        self.records = RecordWriter(self.population, self.text, self.bulk, self.draw)
        self.events = EventWriter(settings.first_seq, self.bulk, content_cids=settings.content_cids)
        self.rare = RareEvents(self.population, self.events, self.records, self.text, self.bulk, self.draw)

    def batch(self, slots: int, start_us: int, end_us: int) -> Batch:
        """Events of about `slots` commits with times spread over [start_us, end_us), in order of time."""
        out = Batch()
        bulk, population, settings, events = self.bulk, self.population, self._settings, self.events
        times_array = start_us + np.sort(bulk.integers(0, max(1, end_us - start_us), slots))
        revs_array = ((times_array - bulk.integers(90_000, 1_600_000, slots)) << 10) | bulk.integers(0, 1024, slots)
        keys_array = revs_array - (bulk.integers(1_000, 300_000, slots) << 10)
        types: list[int] = np.searchsorted(_CUMULATIVE, bulk.random(slots) * _CUMULATIVE[-1], side="right").tolist()
        authors = zipf_indexes(bulk, slots, len(population.dids), _AUTHOR_EXPONENT)
        subjects = zipf_indexes(bulk, slots, len(population.posts), _SUBJECT_EXPONENT)
        chances: list[float] = bulk.random(slots).tolist()
        flawed: list[int] = []
        if settings.malformed_share:
            flawed = np.where(
                bulk.random(slots) < settings.malformed_share, bulk.integers(1, len(FLAWS) + 1, slots), 0
            ).tolist()
        times: list[int] = times_array.tolist()
        time_text = time_texts(times_array, "us")
        created_text = time_texts(keys_array >> 10, "ms")
        revs: list[int] = revs_array.tolist()
        rev_text = tid_texts(revs_array)
        key_text = tid_texts(keys_array)
        cids = [] if settings.content_cids else random_cids(bulk, slots)
        dids, hidden, posts, reposts = population.dids, population.hidden, population.posts, population.reposts
        last_revs, floor = population.last_revs, population.rev_floor
        like_pool, repost_pool = population.pool(_LIKE_NAME), population.pool(_REPOST_NAME)
        follow_pool, post_pool = population.pool(_FOLLOW_NAME), population.pool(_POST_NAME)
        frames, seqs, out_times = out.frames, out.seqs, out.times
        kinds, flaws, tables = out.kinds, out.flaws, out.tables
        seq = events.next_seq
        for at in range(slots):
            account = authors[at]
            while account in hidden:
                account = int(self.draw.random() * len(dids))
            did, rkey, created, chance = dids[account], key_text[at], created_text[at], chances[at]
            kind = types[at]
            if kind == _LIKE_TYPE:
                name, collection = _LIKE_NAME, b"app.bsky.feed.like"
                subject = posts[subjects[at]][0]
                via = None
                if chance < _VIA_LIKES:
                    via = reposts[int(chance / _VIA_LIKES * len(reposts))]
                    record = _LIKE_VIA % (created, subject, via)
                else:
                    record = _LIKE % (created, subject)
                cid = cids[at] if cids else subject_cid(collection, created, subject, via)
                if not at % _POOL_STEP:
                    like_pool.add((account, did, rkey))
            elif kind == _REPOST_TYPE:
                name, collection = _REPOST_NAME, b"app.bsky.feed.repost"
                subject = posts[subjects[at]][0]
                via = None
                if chance < _VIA_REPOSTS:
                    via = reposts[int(chance / _VIA_REPOSTS * len(reposts))]
                    record = _REPOST_VIA % (created, subject, via)
                else:
                    record = _REPOST % (created, subject)
                cid = cids[at] if cids else subject_cid(collection, created, subject, via)
                repost_pool.add((account, did, rkey))
                reposts[int(chance * len(reposts))] = strong_reference(cid, did, collection, rkey)
            elif kind == _FOLLOW_TYPE:
                name, collection = _FOLLOW_NAME, b"app.bsky.graph.follow"
                subject = dids[subjects[at] % len(dids)]
                record = _FOLLOW % (created, subject)
                cid = cids[at] if cids else follow_cid(created, subject)
                follow_pool.add((account, did, rkey))
            elif kind == _POST_TYPE:
                name, collection = _POST_NAME, b"app.bsky.feed.post"
                record, root = self.records.post(created)
                cid = cids[at] if cids else events.cid(record)
                post_pool.add((account, did, rkey))
                reference = strong_reference(cid, did, collection, rkey)
                posts[int(chance * len(posts))] = (reference, root or reference)
            else:
                events.next_seq = seq
                self.rare.add(
                    out, _NAMES[kind], Slot(account, revs[at], rkey, created, Moment(times[at], time_text[at]))
                )
                seq = events.next_seq
                continue
            rev, rev_bytes = revs[at], rev_text[at]
            last = last_revs[account]
            if rev <= last or rev <= floor:
                rev = max(last, floor) + 1 + int(chance * 1000)
                rev_bytes = tid_text(rev)
            last_revs[account] = rev
            frames.append(COMMIT_FRAME % (cid, collection, did, b"create", record, rev_bytes, rkey, seq, time_text[at]))
            seqs.append(seq)
            out_times.append(times[at])
            kinds.append(CREATE)
            flaws.append(flawed[at] if flawed else 0)
            tables.append(name)
            seq += 1
        events.next_seq = seq
        return out

    def slot(self, when: Moment) -> Slot:
        """One slot outside the mix, for scenarios: a random visible account with fresh record key and rev."""
        population = self.population
        account = int(self.draw.random() * len(population.dids))
        while account in population.hidden:
            account = int(self.draw.random() * len(population.dids))
        clock = int(self.draw.random() * 1024)
        rev = (when.time_us - 100_000) << 10 | clock
        return Slot(account, rev, tid_text(rev - (5000 << 10)), when.relay_time, when)

    def state(self) -> dict[str, Any]:
        """What a restart needs to continue the very same stream."""
        bits = self.bulk.bit_generator.state
        inner = bits["state"]
        return {
            "next_seq": self.events.next_seq,
            "bulk": {
                **bits,
                "state": {name: str(inner[name]) for name in ("state", "inc")},
            },  # 128 bits are too wide for msgpack
            "draw": self.draw.getstate(),
            "population": self.population.state(),
            "records": self.records.state(),
            "text": self.text.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        bits = state["bulk"]
        inner = {name: int(text) for name, text in bits["state"].items()}
        self.events.next_seq = state["next_seq"]
        self.bulk.bit_generator.state = {**bits, "state": inner}
        version, numbers, gauss = state["draw"]
        self.draw.setstate((version, tuple(numbers), gauss))
        self.population.restore(state["population"])
        self.records.restore(state["records"])
        self.text.restore(state["text"])

    def reseed(self, position: int) -> None:
        """After a crash the exact draws are lost: continue with ones that depend on seed and position only."""
        self.draw.seed(f"{self._settings.seed}/{position}")
        self.bulk.bit_generator.state = np.random.PCG64([self._settings.seed, position]).state
