"""Errors that every room shares, and the closed list of reasons for a dead letter."""

from __future__ import annotations

from enum import StrEnum


class ExplorerError(Exception):
    """Ends a process or a command with one message that an operator can act on.

    `message` says what is wrong and names the input; `remedy` says what to do about it. `exit_code` is the status the
    command ends with. Raised for damage to our own state and for unusable settings, never for bad data from outside.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  remedy: {self.remedy}" if self.remedy else self.message


class DeadLetterReason(StrEnum):
    """Why an event from outside was set aside; the values are metric labels and never change their meaning."""

    NOT_JSON = "not_json"
    INVALID_UTF8 = "invalid_utf8"
    TOO_DEEP = "too_deep"
    NUMBER_OUT_OF_RANGE = "number_out_of_range"
    NOT_AN_EVENT = "not_an_event"
    UNKNOWN_KIND = "unknown_kind"
    UNKNOWN_OPERATION = "unknown_operation"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    BAD_TIME = "bad_time"
    MISSING_RECORD = "missing_record"
    TOO_LARGE = "too_large"
    BAD_COMPRESSION = "bad_compression"
    BROKER_REFUSED = "broker_refused"
    UNKNOWN_FRAMING = "unknown_framing"
    UNKNOWN_SCHEMA = "unknown_schema"
    UNDECODABLE = "undecodable"
    KEY_MISMATCH = "key_mismatch"
    UNREPRESENTABLE = "unrepresentable"


class BadRecord(Exception):  # noqa: N818 - an outcome that callers count and set aside, not a fault of the program
    """An event from outside that cannot be represented; the caller counts it, dead-letters it and passes on."""

    def __init__(self, reason: DeadLetterReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
