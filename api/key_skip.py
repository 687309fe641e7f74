"""Which files can hold what a query names by key: an account, a record, or what a record is about.

From filters to questions for the bloom filters of the lake's files and the index of accounts; every function gives the plan without
the files that cannot hold a match, and leaves it as it is where neither can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from api.filters import PostFilters
from api.identifiers import RecordUri, is_did, tid_value
from api.relation import Lake
from api.snapshots import Scan
from lake.account_index import Activity
from lake.bloom import Value
from lake.manifest import LiveFile

Wanted = Mapping[str, Sequence[Value]]
_FEW_ACCOUNTS: Final = 16


def holding(lake: Lake, plan: Scan, *alternatives: Wanted) -> Scan:
    """The plan without the files that can hold none of the alternatives: each names columns, and values of which every column
    has to have one in the same row. May block for footers and filters."""
    if any(not wanted for wanted in alternatives):
        return plan
    kept = {file.path for wanted in alternatives for file in _may_hold(lake, plan.files, wanted)}
    return replace(plan, files=tuple(file for file in plan.files if file.path in kept))


def _may_hold(lake: Lake, files: Sequence[LiveFile], wanted: Wanted) -> Sequence[LiveFile]:
    dids = _accounts(wanted)
    # Some of many accounts are in every file.
    if not 0 < len(dids) <= _FEW_ACCOUNTS:
        return lake.filters.may_hold(files, wanted)
    others = {column: values for column, values in wanted.items() if column != "did"}
    if others:
        # Keys rule out most files without reading anything.
        return lake.filters.may_hold(lake.accounts.may_hold(lake.filters.may_hold(files, others), dids), wanted)
    return [file for file, _ in _known(lake, files, dids)]


def _accounts(wanted: Wanted) -> list[str]:
    return [did for did in wanted.get("did", ()) if isinstance(did, str)]


def _known(
    lake: Lake, files: Sequence[LiveFile], dids: Sequence[str]
) -> list[tuple[LiveFile, Sequence[Activity] | None]]:
    """The files that can have rows of some accounts with what the index knows of them; where it knows nothing, the filters rule."""
    found = lake.accounts.of(files, dids)
    kept = {file.path for file in lake.filters.may_hold([f for f, parts in found if parts is None], {"did": dids})}
    return [(file, parts) for file, parts in found if parts is not None or file.path in kept]


def counted(lake: Lake, plan: Scan, dids: Sequence[str], rows: Callable[[Activity], int]) -> Scan:
    """The plan without the files that have no row of one of the accounts that counts, and with how many they have (`rows`: of what
    one of them has in a collection). May block for the index and for filters."""
    if len(dids) > _FEW_ACCOUNTS:
        return replace(holding(lake, plan, {"did": dids}), counts={})
    counts, kept = {}, []
    for file, parts in _known(lake, plan.files, dids):
        if parts is not None:
            counts[file.path] = sum(map(rows, parts))
        if counts.get(file.path) != 0:
            kept.append(file)
    return replace(plan, files=tuple(kept), counts=counts, accounts=tuple(dids))


def key_of(uri: RecordUri) -> Wanted:
    """The row is about this record of its own table."""
    value = tid_value(uri.rkey)
    return {"did": [uri.authority]} | ({} if value is None else {"rkey_tid": [value]})


def naming(stem: str, keys: Sequence[int | None]) -> Wanted:
    """The at-uri columns of `stem` name one of these record keys (numbers of TIDs). Nothing where one is no TID: it is kept as a
    text, which has no filter."""
    known = [key for key in keys if key is not None]
    return {f"{stem}_rkey_tid": known} if len(known) == len(keys) else {}


def narrow_by_keys(lake: Lake, plan: Scan, filters: PostFilters) -> Scan:
    """The plan without the files of posts that cannot match the filter's author, thread, and what it answers or quotes. Handles
    that are not resolved yet tell nothing; who has what is asked once for a plan."""
    if plan.counts is None and filters.author and all(is_did(author) for author in filters.author):
        plan = counted(lake, plan, filters.author, lambda part: part.standing)
    for stem, uri in (("reply_parent", filters.reply_to), ("quote", filters.quoted)):
        if uri is not None:
            plan = holding(lake, plan, naming(stem, [tid_value(uri.rkey)]))
    if filters.thread is not None and is_did(filters.thread.authority):
        root = naming("reply_root", [tid_value(filters.thread.rkey)])
        plan = holding(lake, plan, root, key_of(filters.thread))
    return plan
