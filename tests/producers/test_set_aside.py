"""Which bad frames count as come again, and which are new ones that look the same."""

from __future__ import annotations

from producers.cursor_store import ARCHIVE
from producers.dead_letters import from_frame, from_refused_record
from producers.publisher import StoredRecord
from producers.set_aside import _REMEMBERED, SetAside
from producers.wire import Rejected
from schemas.errors import DeadLetterReason
from schemas.framing import SingleObjectFraming
from schemas.topics import DEAD_LETTER, TOPICS

MINUTE = 60_000_000
NOW = 1_780_000_000_000_000
GARBAGE = Rejected(DeadLetterReason.NOT_JSON, "no JSON")
EVENT = Rejected(DeadLetterReason.BAD_TIME, "too late", 7, NOW - 5, "did:plc:a")


def stored(*values: bytes) -> list[StoredRecord]:
    header = SingleObjectFraming().header(TOPICS[DEAD_LETTER].schema)
    return [StoredRecord(0, offset, b"", header + value) for offset, value in enumerate(values)]


def test_a_frame_comes_again_on_its_host_until_the_connection_is_past_it() -> None:
    aside = SetAside()
    aside.note("a", GARBAGE, b"x", NOW)
    assert aside.has("a", GARBAGE, b"x", None), "the first frame of a connection"
    assert aside.has("a", GARBAGE, b"x", NOW - 60 * MINUTE), "history is read again"
    assert aside.has("a", GARBAGE, b"x", NOW + MINUTE), "the source's clock is ahead"
    assert not aside.has("a", GARBAGE, b"x", NOW + MINUTE + 1), "the source made the same garbage again"
    assert not aside.has("b", GARBAGE, b"x", None)
    assert not aside.has("a", GARBAGE, b"y", None)
    aside.forget()
    assert not aside.has("a", GARBAGE, b"x", None)


def test_an_event_in_other_bytes_is_known_by_all_that_tells_events_apart() -> None:
    aside = SetAside()
    aside.note("a", EVENT, b"live", NOW)
    assert aside.has("a", EVENT, b"from the archive", None)
    for other in (
        EVENT._replace(reason=DeadLetterReason.TOO_LARGE),
        EVENT._replace(seq=8),
        EVENT._replace(time_us=NOW),
        EVENT._replace(did="did:plc:b"),
        EVENT._replace(seq=None),
    ):
        assert not aside.has("a", other, b"from the archive", None)


def test_the_topic_tells_what_earlier_processes_set_aside() -> None:
    ours = from_frame(EVENT, b"whole frame", "a", "v2", NOW, 5)
    archive = from_frame(GARBAGE, b"row", "a", ARCHIVE, NOW, 100)
    refused = from_refused_record("topic", b"did", b"value", "too large", NOW, 100)
    records = stored(ours.encode(), archive.encode(), refused.encode())
    aside = SetAside()
    aside.restore([records[0]._replace(value=b"no letter"), records[0]._replace(value=None), *records])
    assert aside.has("a", GARBAGE, b"whole", None), "by what was kept of it"
    assert aside.has("a", EVENT, b"in other bytes", NOW)
    assert not aside.has("a", EVENT, b"in other bytes", NOW + MINUTE + 1)
    assert not aside.has("a", GARBAGE, b"row", None)
    assert not aside.has("a", GARBAGE, b"value", None)


def test_the_oldest_are_forgotten() -> None:
    aside = SetAside()
    for number in range(_REMEMBERED + 1):
        aside.note("a", GARBAGE, b"%d" % number, NOW)
    assert not aside.has("a", GARBAGE, b"0", None)
    assert aside.has("a", GARBAGE, b"1", None)
