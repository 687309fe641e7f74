"""The rare events of the network: everything but the creation of likes, reposts, follows and posts."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from simulator.events import CREATE, DELETE, UPDATE, Batch, EventWriter, Moment
from simulator.ids import random_dids, tid_text
from simulator.mix import DELETE_COLLECTIONS, SINGLE_KEYS, UPDATE_COLLECTIONS
from simulator.population import Population
from simulator.records import RecordWriter
from simulator.text import TextSource

_POST = "app.bsky.feed.post"
_THREADGATE = "app.bsky.feed.threadgate"


@dataclass(frozen=True)
class Slot:
    """What was drawn for one event: account, the least rev, a fresh record key, the client's time text and the moment."""

    account: int
    rev: int
    rkey: bytes
    created: bytes
    when: Moment


class RareEvents:
    """Makes events of the kinds named in `simulator.mix`, always about records and accounts that exist."""

    def __init__(
        self,
        population: Population,
        events: EventWriter,
        records: RecordWriter,
        text: TextSource,
        bulk: np.random.Generator,
        draw: random.Random,
    ) -> None:
        self.population = population
        self.events = events
        self.records = records
        self._text = text
        self._bulk = bulk
        self._draw = draw

    def add(self, out: Batch, name: str, slot: Slot) -> None:
        """Append the events of one slot; none when nothing fits (a delete while no record exists)."""
        if name == "identity":
            did = self.population.dids[slot.account]
            self.events.identity(out, did, self._text.handle(did) if self._draw.random() < 0.1 else None, slot.when)
        elif name == "account":
            self._account(out, slot)
        elif name == "sync":
            self._sync(out, slot)
        elif name == "update":
            self._update(out, slot)
        elif name == "gated post":
            self._gated_post(out, slot)
        elif name.startswith("delete "):
            self._delete(out, name.removeprefix("delete "), slot)
        else:
            self._create(out, name, slot)

    def next_rev(self, account: int, at_least: int) -> bytes:
        """A rev for the account above all it had before."""
        rev = max(at_least, self.population.last_revs[account] + 1, self.population.rev_floor + 1)
        self.population.last_revs[account] = rev
        return tid_text(rev)

    def _create(self, out: Batch, collection: str, slot: Slot) -> None:
        population, account, rkey = self.population, slot.account, slot.rkey
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
            rkey = b"org.simulated.%b.%b" % (rkey[:6].replace(b"2", b"a"), rkey[6:])
        did = population.dids[account]
        record = self.records.rare[collection](slot.created, rkey)
        self.events.commit(out, CREATE, collection, did, rkey, self.next_rev(account, slot.rev), record, slot.when)
        population.pool(collection).add((account, did, rkey))

    def _gated_post(self, out: Batch, slot: Slot) -> None:
        """A post with its gates in one commit: events of one rev, one record key and one time."""
        did = self.population.dids[slot.account]
        rev = self.next_rev(slot.account, slot.rev)
        uri = b"at://%b/app.bsky.feed.post/%b" % (did, slot.rkey)
        names = [_POST, _THREADGATE]
        if self._draw.random() < 0.6:
            names.append("app.bsky.feed.postgate")
        for name in names:
            record = self.records.post(slot.created)[0] if name == _POST else self.records.rare[name](slot.created, uri)
            self.events.commit(out, CREATE, name, did, slot.rkey, rev, record, slot.when)
            self.population.pool(name).add((slot.account, did, slot.rkey))

    def _delete(self, out: Batch, collection: str, slot: Slot) -> None:
        if collection == "any":
            collection = self._draw.choice(DELETE_COLLECTIONS)
        taken = self.population.take_live(collection)
        if taken is None:
            return
        account, did, rkey = taken
        if collection in SINGLE_KEYS:
            self.population.singles[collection].discard(account)
        self.events.commit(out, DELETE, collection, did, rkey, self.next_rev(account, slot.rev), b"", slot.when)

    def _update(self, out: Batch, slot: Slot) -> None:
        names, weights = UPDATE_COLLECTIONS
        collection = self._draw.choices(names, weights)[0]
        taken = self.population.take_live(collection)
        if taken is None:
            return
        account, did, rkey = taken
        self.population.pool(collection).add(taken)
        if collection == _POST:
            record = self.records.post(slot.created)[0]
        else:
            about = b"at://%b/app.bsky.feed.post/%b" % (did, rkey) if collection == _THREADGATE else rkey
            record = self.records.rare[collection](slot.created, about)
        self.events.commit(out, UPDATE, collection, did, rkey, self.next_rev(account, slot.rev), record, slot.when)

    def _sync(self, out: Batch, slot: Slot) -> None:
        did = self.population.dids[slot.account]
        rev = self.next_rev(slot.account, slot.rev)
        blocks = (
            b"OqJlcm9vdHOB" + slot.rkey * 4
        )  # base64 of the beginning of a CAR header, then noise of the same alphabet
        self.events.sync(out, did, rev, blocks, slot.when)

    def _account(self, out: Batch, slot: Slot) -> None:
        population = self.population
        chance = self._draw.random()
        did = population.dids[slot.account]
        if chance < 0.14:
            self.events.account(out, did, False, b"deleted", slot.when)
            population.replace_account(slot.account, random_dids(self._bulk, 1)[0])
        elif chance < 0.30 and population.hidden:
            hidden = next(iter(population.hidden))
            del population.hidden[hidden]
            self.events.account(out, population.dids[hidden], True, None, slot.when)
        elif chance < 0.46 and len(population.hidden) < len(population.dids) // 20:
            status = "deactivated" if chance < 0.40 else "takendown" if chance < 0.44 else "suspended"
            population.hidden[slot.account] = status
            self.events.account(out, did, False, status.encode(), slot.when)
        else:
            self.events.account(out, did, True, None, slot.when)
