"""Handles to DIDs and back, from the identity events the archive has seen."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel

from api.engine import Session
from api.errors import ApiError, FieldError, Problem
from api.filters import ACTOR_FIELDS, URI_FIELDS, PostFilters
from api.identifiers import RecordUri, is_did
from lake.manifest import Snapshot

F = TypeVar("F", bound=PostFilters)

_OWNERS: Final = """
    SELECT lower(handle) AS handle, arg_max(did, time) AS did
    FROM read_parquet($files, hive_partitioning = false)
    WHERE handle IS NOT NULL AND lower(handle) IN (SELECT unnest($handles)) GROUP BY ALL
"""


_HANDLES: Final = """
    SELECT did, arg_max(handle, time) AS handle
    FROM read_parquet($files, hive_partitioning = false)
    WHERE handle IS NOT NULL AND did IN (SELECT unnest($dids)) GROUP BY ALL
"""


def handles_of_accounts(session: Session, root: Path, snapshot: Snapshot, dids: set[str]) -> dict[str, str]:
    """DID → the last handle that an identity event named; accounts without one are missing."""
    files = [str(root / file.path) for file in snapshot.files("identity")]
    return dict(session.rows(_HANDLES, {"files": files, "dids": sorted(dids)})) if files and dids else {}


def handles_of(filters: BaseModel) -> set[str]:
    """The handles among the actors and at-uris of a filter."""
    actors = {actor for name in ACTOR_FIELDS for actor in getattr(filters, name, ())}
    uris = (getattr(filters, name, None) for name in URI_FIELDS)
    actors |= {uri.authority for uri in uris if isinstance(uri, RecordUri)}
    return {actor for actor in actors if not is_did(actor)}


def resolve(session: Session, root: Path, snapshot: Snapshot, handles: set[str]) -> dict[str, str]:
    """Handle → the DID that used it last. ApiError 404 names the first handle that no identity event mentions."""
    if not handles:
        return {}
    files = [str(root / file.path) for file in snapshot.files("identity")]
    found = dict(session.rows(_OWNERS, {"files": files, "handles": sorted(handles)})) if files else {}
    for handle in sorted(handles):
        if handle not in found:
            detail = f"no event of this archive names the handle {handle}: use the account's DID instead"
            raise ApiError(Problem.UNKNOWN_HANDLE, detail, errors=[FieldError("author", detail)])
    return found


def with_dids(filters: F, dids: dict[str, str]) -> F:
    """The filter with every handle replaced by its DID."""
    if not dids:
        return filters
    changes: dict[str, object] = {
        name: tuple(dids.get(actor, actor) for actor in getattr(filters, name)) for name in ACTOR_FIELDS
    }
    for name in URI_FIELDS:
        uri = getattr(filters, name)
        if uri is not None:
            changes[name] = RecordUri(dids.get(uri.authority, uri.authority), uri.collection, uri.rkey)
    return filters.model_copy(update=changes)
