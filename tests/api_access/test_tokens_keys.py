"""API keys: their text, and the store that knows only hashes."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.access.keys import KeyStore, KeyStoreError, create_key, list_keys, revoke_key
from api.access.scopes import Scope
from api.access.tokens import LOOKS_LIKE_KEY, make_token, parse_token

NOW = 1_700_000_000.0


@given(st.binary(min_size=40, max_size=40))
def test_a_made_key_parses_to_itself(entropy: bytes) -> None:
    text, token = make_token(entropy)
    assert parse_token(text) == token
    assert len(text) == 4 + 8 + 1 + 43 + 6
    assert LOOKS_LIKE_KEY.search(text.encode())


@given(st.binary(min_size=40, max_size=40), st.integers(13, 61), st.sampled_from("0aZ"))
def test_one_wrong_character_is_noticed(entropy: bytes, position: int, character: str) -> None:
    text, _ = make_token(entropy)
    changed = text[:position] + character + text[position + 1 :]
    assert (parse_token(changed) is None) == (changed != text)


@given(st.text())
def test_any_other_text_is_no_key(text: str) -> None:
    assert parse_token(text) is None


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    path = tmp_path / "state" / "keys.sqlite"
    assert list_keys(path) == []
    made = create_key(path, name="Ada", scopes=frozenset({Scope.READ, Scope.EXPORT}), days=1, now=NOW)
    token = parse_token(made.token)
    assert token is not None
    store = KeyStore(path)
    assert store.verify(token) == made.info == list_keys(path)[0]
    assert made.info.valid(NOW + 86_399)
    assert not made.info.valid(NOW + 86_400)
    assert not revoke_key(path, made.info.id, now=NOW + 5).valid(NOW + 6)
    assert revoke_key(path, made.info.id, now=NOW + 9).revoked == NOW + 5


def test_the_file_holds_no_key_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    made = create_key(path, name="Ada", scopes=frozenset({Scope.READ}), days=None, now=NOW)
    secret = made.token.split("_")[2].encode()
    for file in tmp_path.iterdir():
        assert secret not in file.read_bytes()
    assert path.stat().st_mode & 0o077 == 0


def test_another_secret_under_a_known_id_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    made = create_key(path, name="Ada", scopes=frozenset({Scope.READ}), days=None, now=NOW)
    token = parse_token(made.token)
    assert token is not None
    assert KeyStore(path).verify(type(token)(token.key_id, bytes(32))) is None
    assert KeyStore(path).verify(type(token)("aaaaaaaa", token.digest)) is None


def test_last_use_only_moves_forward(tmp_path: Path) -> None:
    store = KeyStore(tmp_path / "keys.sqlite")
    made = create_key(store.path, name="Ada", scopes=frozenset({Scope.READ}), days=None, now=NOW)
    store.touch(made.info.id, NOW + 10)
    store.touch(made.info.id, NOW + 5)
    found = store.get(made.info.id)
    assert found is not None
    assert found.last_used == NOW + 10


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"name": " "}, "name"), ({"scopes": frozenset()}, "scope"), ({"days": 0}, "days")],
)
def test_a_useless_key_is_not_made(tmp_path: Path, arguments: dict[str, object], word: str) -> None:
    given_ = {"name": "Ada", "scopes": frozenset({Scope.READ}), "days": None, "now": NOW} | arguments
    with pytest.raises(KeyStoreError, match=word):
        create_key(tmp_path / "keys.sqlite", **given_)  # type: ignore[arg-type]


def test_unknown_ids_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    create_key(path, name="Ada", scopes=frozenset({Scope.READ}), days=None, now=NOW)
    with pytest.raises(KeyStoreError, match="no key 'zzzzzzzz'"):
        revoke_key(path, "zzzzzzzz", now=NOW)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE something (x)")
    connection.close()
    with pytest.raises(KeyStoreError, match="something else"):
        list_keys(other)
    text = tmp_path / "text.sqlite"
    text.write_text("not a database at all, but long enough to have a header" * 20)
    with pytest.raises(KeyStoreError, match="cannot be used"):
        list_keys(text)
