"""Read a frame that the strict decoders refused: keep what is understood, carry the rest along, or say why not.

Shared by both wires. Each member is taken out of the object it stands in; what nobody took becomes the patch that
`envelope_json` holds (raw text, so nothing is re-serialised).
"""

from __future__ import annotations

from producers.wire import MAX_SEQ, MAX_TIME_US, MIN_TIME_US, OPERATIONS
from schemas.errors import DeadLetterReason
from schemas.json_members import Malformed, is_valid, join_object, scalar, split_object


class Refused(Exception):  # noqa: N818 - an outcome, turned into `Rejected` by the wire that called
    """The frame is no event, for `reason`."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Members:
    """The members of one JSON object of a frame, taken out one by one."""

    def __init__(self, text: bytes, what: str) -> None:
        try:
            self._members = split_object(text)
        except Malformed as error:
            reason = DeadLetterReason.NOT_JSON
            if not _is_utf8(text):
                reason = DeadLetterReason.INVALID_UTF8
            elif text[:1] != b"{" and is_valid(text):
                reason = DeadLetterReason.NOT_AN_EVENT
            raise Refused(reason, f"{what}: {error}") from None
        self._what = what

    def has(self, name: str) -> bool:
        """Whether the member stands there, whatever its value."""
        return name in self._members

    def take_raw(self, name: str) -> bytes | None:
        """Take the exact text of a member, None when it is absent."""
        return self._members.pop(name, None)

    def take_object(self, name: str) -> bytes:
        """Take the text of a member that must be an object. Raises Refused."""
        value = self._require(name)
        if value[:1] != b"{":
            raise Refused(DeadLetterReason.WRONG_TYPE, f"{self._what}.{name} is not an object")
        return value

    def take_text(self, name: str) -> str:
        """Take a member that must be a string which UTF-8 can hold. Raises Refused."""
        value = self._scalar(name, self._require(name))
        if not isinstance(value, str):
            raise Refused(DeadLetterReason.WRONG_TYPE, f"{self._what}.{name} is not a string")
        if not _is_encodable(value):
            raise Refused(DeadLetterReason.UNREPRESENTABLE, f"{self._what}.{name} holds a lone surrogate")
        return value

    def take_text_if_usable(self, name: str) -> str | None:
        """Take a member if it is an encodable string; leave anything else where it is, for the patch."""
        text = self._members.get(name)
        if text is None or text[:1] != b'"':
            return None
        value = self._scalar(name, text)
        if not isinstance(value, str) or not _is_encodable(value):
            return None
        del self._members[name]
        return value

    def take_integer(self, name: str, low: int, high: int) -> int:
        """Take a member that must be an integer of low..high. Raises Refused."""
        value = self._scalar(name, self._require(name))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Refused(DeadLetterReason.WRONG_TYPE, f"{self._what}.{name} is not an integer")
        if not low <= value <= high:
            raise Refused(DeadLetterReason.NUMBER_OUT_OF_RANGE, f"{self._what}.{name} is {value}")
        return value

    def put_back(self, name: str, text: bytes) -> None:
        """Leave a member's exact text for the patch, though its value was understood."""
        self._members[name] = text

    def rest(self) -> dict[str, bytes]:
        """What nobody took."""
        return self._members

    def _require(self, name: str) -> bytes:
        value = self._members.pop(name, None)
        if value is None:
            raise Refused(DeadLetterReason.MISSING_FIELD, f"{self._what}.{name} is missing")
        return value

    def _scalar(self, name: str, text: bytes) -> object:
        try:
            return scalar(text)
        except Malformed:
            if text[:1] in (b"{", b"["):
                return None
            reason = DeadLetterReason.NOT_JSON if _is_utf8(text) else DeadLetterReason.INVALID_UTF8
            raise Refused(reason, f"{self._what}.{name} cannot be read") from None


TakenCommit = tuple[int | None, int, str, str, str, str, str, str | None, bytes | None]


def take_commit(members: Members, seq: int | None, time_us: int, did: str) -> TakenCommit:
    """Take the members of a record operation, in the order of `Commit`'s fields without the patch. Raises Refused.

    A record on a delete, or a cid that is no string, is left where it stands.
    """
    operation = members.take_text("operation")
    if operation not in OPERATIONS:
        raise Refused(DeadLetterReason.UNKNOWN_OPERATION, f"operation {operation[:64]!r}")
    collection = members.take_text("collection")
    rkey = members.take_text("rkey")
    rev = members.take_text("rev")
    cid = members.take_text_if_usable("cid")
    record: bytes | None = None
    if operation != "delete":
        record = members.take_raw("record")
        if record is None:
            raise Refused(DeadLetterReason.MISSING_RECORD, f"{operation} without a record")
    return seq, time_us, did, operation, collection, rkey, rev, cid, record


def patch(outer: dict[str, bytes], inner_name: str, inner: dict[str, bytes]) -> str | None:
    """The JSON object to be deep-merged over the rebuilt frame, None when nothing is left. Raises Refused."""
    members = dict(outer)
    if inner:
        members[inner_name] = join_object(inner)
    if not members:
        return None
    text = join_object(members)
    if not is_valid(text):
        raise Refused(_why_invalid(text), "a member that no schema knows cannot be read")
    return text.decode("utf-8")


def take_time_us(members: Members, name: str) -> int:
    """Take a witness time in unix microseconds. Raises Refused."""
    return members.take_integer(name, MIN_TIME_US, MAX_TIME_US)


def take_seq(members: Members, name: str) -> int:
    """Take a sequence number. Raises Refused."""
    return members.take_integer(name, 0, MAX_SEQ)


def _why_invalid(text: bytes) -> DeadLetterReason:
    if not _is_utf8(text):
        return DeadLetterReason.INVALID_UTF8
    return DeadLetterReason.TOO_DEEP if max(text.count(b"["), text.count(b"{")) > 500 else DeadLetterReason.NOT_JSON


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
