"""The rule of what ends what, at its borders: equal times, several states in one file, rows that are judged again."""

from __future__ import annotations

from typing import Any

import pytest
from support import HOUR, POST, START, account_row, commit_row, lake_rows, sync_row, tid

from lake.fold import ended, endings_of, erasable

AT = START + HOUR


def reasons(rows: list[dict[str, Any]], **endings: list[dict[str, Any]]) -> list[str | None]:
    tables = {"records": POST, "accounts": "account", "syncs": "sync"}
    found = endings_of(**{name: [lake_rows(tables[name], events)] for name, events in endings.items()})
    return ended(lake_rows(POST, rows), found).to_list()


@pytest.mark.parametrize(("moment", "reason"), [(AT - 1, "account"), (AT, "account"), (AT + 1, None)])
def test_a_deletion_of_an_account_reaches_up_to_its_own_time(moment: int, reason: str | None) -> None:
    assert reasons([commit_row(POST, 1, moment)], accounts=[account_row(1, AT, "deleted")]) == [reason]


def test_only_a_deletion_ends_what_an_account_wrote_whatever_else_the_file_says() -> None:
    states = [
        account_row(1, AT, "deleted"),
        account_row(2, AT, "suspended"),
        account_row(3, AT, "deactivated"),
        account_row(4, AT, None),
        # An active account with a status is active.
        account_row(5, AT, "deleted", active=True),
    ]
    assert reasons([commit_row(POST, who, START) for who in range(1, 7)], accounts=states) == ["account", *[None] * 5]


def test_the_last_deletion_of_an_account_counts() -> None:
    states = [account_row(1, AT, "deleted"), account_row(1, AT + HOUR, "deleted"), account_row(1, AT - 5, "deleted")]
    posts = [commit_row(POST, 1, AT + HOUR), commit_row(POST, 1, AT + HOUR + 1)]
    assert reasons(posts, accounts=states) == ["account", None]


@pytest.mark.parametrize(("rev", "reason"), [(AT - 1, "sync"), (AT, None), (AT + 1, None)])
def test_a_sync_ends_what_is_older_than_its_rev(rev: int, reason: str | None) -> None:
    assert reasons([commit_row(POST, 1, START, rev=tid(rev, 1))], syncs=[sync_row(1, AT)]) == [reason]


@pytest.mark.parametrize(("rev", "reason"), [(AT - 1, "update"), (AT, None), (AT + 1, None)])
def test_an_update_ends_older_revs_and_not_itself(rev: int, reason: str | None) -> None:
    update = commit_row(POST, 1, AT, "update", START)
    assert reasons([commit_row(POST, 1, START, rev=tid(rev, 1))], records=[update]) == [reason]


def test_a_create_of_a_resync_ends_what_was_and_a_plain_one_does_not() -> None:
    before = commit_row(POST, 1, START, key_us=START)
    for resync, found in ((True, "update"), (False, None)):
        again = commit_row(POST, 1, AT, key_us=START, resync=resync)
        assert reasons([before], records=[again]) == [found]


def test_the_newest_of_several_endings_gives_the_reason() -> None:
    before = commit_row(POST, 1, START, key_us=START)
    ends = [
        commit_row(POST, 1, AT + operation_at, operation, START)
        for operation_at, operation in ((5, "delete"), (9, "update"))
    ]
    assert reasons([before], records=ends) == ["update"]
    assert reasons([before], records=ends[:1]) == ["delete"]


def test_what_is_empty_already_is_not_emptied_again() -> None:
    rows = lake_rows(POST, [commit_row(POST, 1, START), commit_row(POST, 1, START + 1, "delete")])
    endings = endings_of(accounts=[lake_rows("account", [account_row(1, AT, "deleted")])])
    assert erasable(POST, rows, endings).to_list() == ["account", None]
    marked = rows.set_column(rows.column_names.index("erased"), rows.schema.field("erased"), [["update", None]])
    assert erasable(POST, marked, endings).to_list() == [None, None]
