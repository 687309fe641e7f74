"""After a crash: bring a population up to date from the events that were logged since the last checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from simulator.events import CREATE, DELETE, RESYNC
from simulator.ids import random_dids
from simulator.ledger import block_events
from simulator.log import Block
from simulator.mix import SINGLE_KEYS
from simulator.population import Population

_Key = tuple[str, bytes, bytes]


def replay(population: Population, blocks: Iterator[Block], position: int) -> None:
    """Apply the events from `position` on.

    The places of accounts that were deleted meanwhile get new DIDs, drawn from the position.
    """
    index = population.index()
    created: dict[_Key, int] = {}
    deleted: set[_Key] = set()
    bulk = np.random.default_rng([position, 2])
    for block in blocks:
        for event in block_events(block):
            if event.position < position:
                continue
            did = event.did.encode()
            account = index.get(did)
            if account is None:
                continue
            if event.kind == "account":
                _account(population, index, account, event.record, bulk)
            elif event.collection is not None and event.rkey is not None:
                key = (event.collection, did, event.rkey.encode())
                kind = block.kinds[event.position - block.info.position]
                if kind in (CREATE, RESYNC):
                    created[key] = account
                    if event.collection in SINGLE_KEYS:
                        population.singles.setdefault(event.collection, set()).add(account)
                elif kind == DELETE:
                    created.pop(key, None)
                    deleted.add(key)
                    if event.collection in SINGLE_KEYS:
                        population.singles.setdefault(event.collection, set()).discard(account)
    for collection, pool in population.pools.items():
        pool.records = [record for record in pool.records if (collection, record[1], record[2]) not in deleted]
    for (collection, did, rkey), account in created.items():
        population.pool(collection).add((account, did, rkey))


def _account(
    population: Population, index: dict[bytes, int], account: int, payload: object, bulk: np.random.Generator
) -> None:
    assert isinstance(payload, dict)
    if payload["active"]:
        population.hidden.pop(account, None)
    elif payload.get("status") == "deleted":
        did = random_dids(bulk, 1)[0]
        population.replace_account(account, did)
        index[did] = account
    else:
        population.hidden[account] = str(payload.get("status"))
