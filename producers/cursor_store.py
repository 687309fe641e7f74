"""The stored cursors: one record per source host in the compacted topic `bluesky.jetstream-cursor`.

Read once at start, to the end; written about once a second, always after the acknowledgements of everything below them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from producers.cursor import Position
from producers.errors import CursorUnreadableError
from producers.publisher import Publisher, StoredRecord
from schemas.avro_schemas import schema_by_fingerprint
from schemas.bodies import Cursor
from schemas.errors import BadRecord
from schemas.framing import split
from schemas.topics import CURSOR, TOPICS

ARCHIVE: Final = "archive"
"""Protocol of rows and progress records that come from an archive."""


class StoredCursors:
    """The newest cursor of each host, as read from the topic."""

    def __init__(self, records: Iterable[StoredRecord]) -> None:
        """Take the newest record of each key. Raises CursorUnreadableError when one of those is not a cursor.

        Older ones are passed over unread: writing a new cursor is the cure for an unreadable one.
        """
        newest = {record.key: record for record in records}
        cursors = [decode_cursor(record) for record in newest.values() if record.value is not None]
        cursors.sort(key=lambda cursor: cursor.updated_us, reverse=True)
        self.cursors = tuple(cursor for cursor in cursors if cursor.protocol != ARCHIVE)
        """One per host, the most recently written first."""
        self.archives = tuple(cursor for cursor in cursors if cursor.protocol == ARCHIVE)
        """The progress of gaps that are being filled; `host` then names the gap."""

    @property
    def newest(self) -> Position | None:
        """The position written last, whichever host it is of; None when the topic is empty."""
        for cursor in self.cursors:
            if cursor.time_us is not None:
                return Position(cursor.host, cursor.protocol, cursor.seq, cursor.time_us, cursor.made_us)
        return None


def decode_cursor(record: StoredRecord) -> Cursor:
    """The cursor in a record of the topic. Raises CursorUnreadableError, which names the record and what to do."""
    try:
        reference, body = split(record.value or b"")
        if reference.kind == "fingerprint":
            known = schema_by_fingerprint(reference.value)
            if known is None or known.name != TOPICS[CURSOR].schema:
                raise ValueError("it was written with a schema that this release does not know")
        cursor = Cursor.decode(body)
        if not cursor.host or (cursor.seq is not None and cursor.seq < 0):
            raise ValueError("it holds values that are no position")
    except (BadRecord, ValueError, KeyError) as error:
        raise CursorUnreadableError(
            f"the stored cursor at {CURSOR}, partition {record.partition}, offset {record.offset} cannot be read: {error}",
            "run the release that wrote it, or set a position yourself with `post-explorer cursor set HOST --time TIME`"
            " (events before it are then never fetched)",
        ) from None
    return cursor


def store(publisher: Publisher, position: Position, now_us: int) -> None:
    """Hand the cursor of `position` to the broker; call only with a position below which everything is acknowledged.

    Raises BufferError when the client's queue is full; the next call then stores a newer one.
    """
    cursor = Cursor(position.host, position.protocol, position.seq, position.time_us, now_us, position.made_us)
    publisher.put_aside(CURSOR, position.host, cursor.encode())
