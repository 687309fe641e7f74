"""What belongs to the file of an export: where its rows came from, and how to say so."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from api.citations import AsOf
from api.exports.model import Compression, Job
from api.tabular import TableFormat
from api.times import format_time
from lake.manifest import TopicPartition

SOFTWARE: Final = "bluesky-post-explorer"


def metadata(job: Job) -> dict[str, str]:
    """What the footer of a Parquet file says of the export."""
    return {"provenance": json.dumps(provenance(job, None), ensure_ascii=False)}


def made_at(job: Job) -> AsOf:
    """The snapshot that the rows of an export are from."""
    positions = {TopicPartition(topic, number): offset for topic, number, offset in job.positions}
    return AsOf(job.snapshot_version or 0, job.snapshot_created_us or 0, positions)


def query_digest_of(job: Job) -> str:
    """A short digest of what was asked, for citations."""
    text = json.dumps({"meaning": job.meaning, "as_of": job.snapshot_version}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance(job: Job, digest: str | None) -> dict[str, Any]:
    """What belongs to the file of an export: where its rows came from and how to say so. `digest` None inside the file."""
    version = job.snapshot_version or 0
    created = format_time(job.snapshot_created_us or 0)
    finished = format_time(job.finished_us or job.created_us)
    about = f"snapshot {version} of {created}, query {query_digest_of(job)}"
    citation = f"Bluesky Post Explorer, {about}: {job.rows} posts, exported {finished}."
    found: dict[str, Any] = {
        "export": job.id,
        "query": {name: value for name, value in job.meaning.items() if name != "fields"},
        "as_of": job.request.get("as_of"),
        "limit": job.request.get("limit"),
        "snapshot": {"version": version, "created": created},
        "since": job.since,
        "removed_since": job.removed_since,
        "removals_honoured_up_to_version": job.checked_version,
        "coverage": job.coverage,
        "columns": [{"name": name, "type": kind} for name, kind in job.columns],
        "order": "arrival, oldest first",
        "rows": job.rows,
        "format": job.request.get("format", TableFormat.CSV),
        "compression": job.request.get("compression", Compression.NONE),
        "file_name": job.file_name,
        "created": format_time(job.created_us),
        "finished": finished,
        "software": SOFTWARE,
        "citation": citation,
        "note": "Posts that their authors delete later have to be removed from copies too: POST /v1/compliance tells which.",
    }
    if digest is not None:
        found |= {"bytes": job.bytes, "sha256": digest, "citation": f"{citation} SHA-256 {digest}."}
    return found
