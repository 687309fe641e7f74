"""JSON of the network, read and written tolerantly: whatever is a JSON value survives, whatever is not gets a reason."""

from __future__ import annotations

import json
from typing import Any, Final

from schemas.errors import BadRecord, DeadLetterReason


def loads(raw: bytes | str) -> Any:
    """Parse JSON of the network tolerantly: lone surrogates and big integers pass, what no JSON value can be does not.

    Raises BadRecord: NOT_JSON, INVALID_UTF8, TOO_DEEP, NUMBER_OUT_OF_RANGE.
    """
    try:
        return _DECODER.decode(raw if isinstance(raw, str) else raw.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(DeadLetterReason.INVALID_UTF8, str(error)) from None
    except RecursionError:
        raise BadRecord(DeadLetterReason.TOO_DEEP, "nested deeper than the parser's stack") from None
    except json.JSONDecodeError as error:
        raise BadRecord(DeadLetterReason.NOT_JSON, str(error)) from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise BadRecord(DeadLetterReason.NUMBER_OUT_OF_RANGE, str(error)) from None


def _constant(name: str) -> Any:
    raise BadRecord(DeadLetterReason.NOT_JSON, f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise BadRecord(DeadLetterReason.NUMBER_OUT_OF_RANGE, f"{text[:40]} exceeds a double")
    return value


_DECODER: Final = json.JSONDecoder(parse_constant=_constant, parse_float=_float, strict=True)


def dumps(value: Any) -> str:
    """Write JSON compactly; text with a lone surrogate is escaped, so that the result is always encodable."""
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise BadRecord(DeadLetterReason.TOO_DEEP, "nested deeper than the writer's stack") from None
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text
