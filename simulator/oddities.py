"""The event scenarios: strange but possible events, each made by one function.

All but `malformed` and the unknown kinds are events that a consumer must keep or set aside with a reason; the ledger counts them as
events like any other.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.events import CREATE, DELETE, RESYNC, UPDATE, Batch, Moment
from simulator.flaws import FLAWS
from simulator.generator import Generator
from simulator.ids import random_dids, tid_text
from simulator.mix import SINGLE_KEYS
from simulator.poison import RECORDS, Poison
from simulator.rare import Slot
from simulator.wire import micros_text

Oddity = Callable[[Generator, Batch, Slot, int, float], None]
_STATUSES = (b"takendown", b"suspended", b"deactivated", b"desynchronized", b"throttled", b"deleted", b"frozen")
_POST = "app.bsky.feed.post"


def add_oddity(generator: Generator, out: Batch, name: str, turn: int, amount: float) -> None:
    """Append the events of one scenario at the end of a batch; `turn` counts its firings from 0."""
    last = out.times[-1]
    slot = generator.slot(Moment(last, micros_text(last)))
    poison = RECORDS.get(name)
    if poison is not None:
        _poisoned(generator, out, slot, poison, turn, amount)
    else:
        ODDITIES[name](generator, out, slot, turn, amount)


def _poisoned(generator: Generator, out: Batch, slot: Slot, poison: Poison, turn: int, amount: float) -> None:
    collection, record = poison(turn, int(amount), slot.created)
    did = generator.population.dids[slot.account]
    rev = generator.rare.next_rev(slot.account, slot.rev)
    rkey = SINGLE_KEYS.get(collection, slot.rkey)
    if poison is RECORDS["long-names"]:
        rkey = rkey + b"-_.:~" * 48 + b"kk"
    kind = UPDATE if collection in SINGLE_KEYS else CREATE
    generator.events.commit(out, kind, collection, did, rkey, rev, record, slot.when)


def _malformed(generator: Generator, out: Batch, slot: Slot, turn: int, _: float) -> None:
    _post(generator, out, slot)
    out.flaws[-1] = 1 + turn % len(FLAWS)


def _post(generator: Generator, out: Batch, slot: Slot) -> None:
    did = generator.population.dids[slot.account]
    rev = generator.rare.next_rev(slot.account, slot.rev)
    generator.events.commit(out, CREATE, _POST, did, slot.rkey, rev, generator.records.post(slot.created)[0], slot.when)


def _identity(handle: bool) -> Oddity:
    def add(generator: Generator, out: Batch, slot: Slot, _: int, __: float) -> None:
        did = generator.population.dids[slot.account]
        generator.events.identity(out, did, generator.text.handle(did) if handle else None, slot.when)

    return add


def _account_without_status(generator: Generator, out: Batch, slot: Slot, _: int, __: float) -> None:
    generator.population.hidden[slot.account] = "deactivated"
    generator.events.account(out, generator.population.dids[slot.account], False, None, slot.when)


def _account_statuses(generator: Generator, out: Batch, slot: Slot, turn: int, _: float) -> None:
    status = _STATUSES[turn % len(_STATUSES)]
    population = generator.population
    generator.events.account(out, population.dids[slot.account], False, status, slot.when)
    if status == b"deleted":
        population.replace_account(slot.account, random_dids(generator.bulk, 1)[0])
    else:
        population.hidden[slot.account] = status.decode()


def _account_reactivated(generator: Generator, out: Batch, slot: Slot, _: int, __: float) -> None:
    did = generator.population.dids[slot.account]
    generator.events.account(out, did, False, b"deactivated", slot.when)
    generator.events.account(out, did, True, None, slot.when)
    _post(generator, out, slot)


def _sync(synthetic: bool) -> Oddity:
    def add(generator: Generator, out: Batch, slot: Slot, _: int, __: float) -> None:
        did = generator.population.dids[slot.account]
        rev = generator.rare.next_rev(slot.account, slot.rev)
        blocks = b"" if synthetic else b"OqJlcm9vdHOB" + slot.rkey * 4
        generator.events.sync(out, did, rev, blocks, slot.when, synthetic=synthetic)

    return add


def _resync(generator: Generator, out: Batch, slot: Slot, _: int, amount: float) -> None:
    """The repo as a whole under its current rev and the time of download; record keys are as old as the records."""
    did = generator.population.dids[slot.account]
    rev = generator.rare.next_rev(slot.account, slot.rev)
    generator.events.sync(out, did, rev, b"", slot.when, synthetic=True)
    for at in range(int(amount)):
        month = (30 * 86_400_000_000) << 10
        rkey = tid_text(slot.rev - (at + 1) * month)
        generator.events.commit(out, RESYNC, _POST, did, rkey, rev, generator.records.post(slot.created)[0], slot.when)


def _shared_time(generator: Generator, out: Batch, slot: Slot, _: int, amount: float) -> None:
    did = generator.population.dids[slot.account]
    rev = generator.rare.next_rev(slot.account, slot.rev)
    for at in range(int(amount)):
        rkey = tid_text(slot.rev - ((at + 1) << 10))
        generator.events.commit(out, CREATE, _POST, did, rkey, rev, generator.records.post(slot.created)[0], slot.when)


def _imported_time(generator: Generator, out: Batch, slot: Slot, _: int, amount: float) -> None:
    earlier = slot.when.time_us - int(amount * 1e6)
    when = Moment(earlier, micros_text(earlier))
    _post(generator, out, Slot(slot.account, slot.rev, slot.rkey, when.relay_time, when))


def _unseen_record(generator: Generator, out: Batch, slot: Slot, _: int, __: float) -> None:
    did = generator.population.dids[slot.account]
    rkey = tid_text(slot.rev - ((400 * 86_400_000_000) << 10))
    for kind in (UPDATE, DELETE):
        rev = generator.rare.next_rev(slot.account, slot.rev)
        generator.events.commit(out, kind, _POST, did, rkey, rev, generator.records.post(slot.created)[0], slot.when)


def _recreated_record(generator: Generator, out: Batch, slot: Slot, _: int, __: float) -> None:
    did = generator.population.dids[slot.account]
    for kind in (CREATE, DELETE, CREATE):
        rev = generator.rare.next_rev(slot.account, slot.rev)
        uri = b"at://%b/app.bsky.feed.post/%b" % (did, slot.rkey)
        record = generator.records.rare["app.bsky.feed.threadgate"](slot.created, uri)
        generator.events.commit(out, kind, "app.bsky.feed.threadgate", did, slot.rkey, rev, record, slot.when)


def _unknown(envelope: bool) -> Oddity:
    def add(generator: Generator, out: Batch, slot: Slot, _: int, __: float) -> None:
        generator.events.unknown(out, generator.population.dids[slot.account], slot.when, envelope=envelope)

    return add


def _unknown_members(generator: Generator, out: Batch, slot: Slot, turn: int, _: float) -> None:
    """Additional members at each level; the v2 frame gets them after its known ones, at the end of the payload."""
    did = generator.population.dids[slot.account]
    rev = generator.rare.next_rev(slot.account, slot.rev)
    record = (
        b'{"$type":"app.bsky.feed.post","createdAt":"%b","text":"extended","via":{"app":"other","n":[1,null,{}]},"x":%d}'
        % (
            slot.created,
            turn,
        )
    )
    generator.events.commit(out, CREATE, _POST, did, slot.rkey, rev, record, slot.when)
    out.frames[-1] = out.frames[-1][:-2] + b',"trace":{"hop":[%d],"note":null}}}' % turn


ODDITIES: dict[str, Oddity] = {
    "malformed": _malformed,
    "identity-without-handle": _identity(handle=False),
    "identity-with-handle": _identity(handle=True),
    "account-without-status": _account_without_status,
    "account-statuses": _account_statuses,
    "account-reactivated": _account_reactivated,
    "sync": _sync(synthetic=False),
    "synthetic-sync": _sync(synthetic=True),
    "resync": _resync,
    "shared-time": _shared_time,
    "imported-time": _imported_time,
    "unseen-record": _unseen_record,
    "recreated-record": _recreated_record,
    "unknown-payload": _unknown(envelope=False),
    "unknown-envelope": _unknown(envelope=True),
    "unknown-members": _unknown_members,
}
