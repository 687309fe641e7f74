"""The store of API keys: one SQLite file, hashes only; used by the API and by `post-explorer keys`.

A key is found by its id and compared in constant time by the SHA-256 of its whole text: with 256 random bits a slow hash
would add nothing. Revoked and expired keys stay listed, so that the audit log can be read later.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from api.access.config import AccessSettings
from api.access.scopes import Scope
from api.access.tokens import Token, make_token
from schemas.errors import ExplorerError

_APPLICATION_ID: Final = 0x424B4559
"""Marks the file as ours in SQLite's header ("BKEY")."""
_VERSION: Final = 1
_BUSY_SECONDS: Final = 5.0
_NAME_LENGTH: Final = 100
_SCHEMA: Final = """
CREATE TABLE key (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL,
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL,
    revoked REAL,
    last_used REAL,
    requests_per_minute INTEGER,
    bytes_per_day INTEGER
) STRICT
"""
_COLUMNS: Final = "id, name, scopes, created, expires, revoked, last_used, requests_per_minute, bytes_per_day"
_SELECT: Final = f"SELECT {_COLUMNS}, digest FROM key"  # noqa: S608 - constants only


class KeyStoreError(ExplorerError):
    """The key file cannot be used, or a key cannot be made or found."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What is known of a key; times in seconds since 1970, None = never; limits None = those of the settings."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created: float
    expires: float | None
    revoked: float | None
    last_used: float | None
    requests_per_minute: int | None
    bytes_per_day: int | None

    def valid(self, now: float) -> bool:
        """Whether the key may be used at `now`."""
        return self.revoked is None and (self.expires is None or now < self.expires)


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key; `token` is its text, which cannot be had again."""

    token: str
    info: KeyInfo


def keys_file(settings: AccessSettings, state_dir: Path) -> Path:
    """Where the keys of a service with these settings are."""
    return settings.keys_file or state_dir / "keys.sqlite"


class KeyStore:
    """Thread-safe: every call opens the file, which takes well under a millisecond and is done once per key and
    `key_cache_seconds`. Calls may block for 5 s while another process writes. Raises KeyStoreError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(
        self,
        *,
        name: str,
        scopes: frozenset[Scope],
        expires: float | None,
        requests_per_minute: int | None,
        bytes_per_day: int | None,
        now: float,
    ) -> CreatedKey:
        """Store a new random key; makes the file, readable by its owner only, when there is none."""
        if not name.strip() or len(name) > _NAME_LENGTH:
            raise KeyStoreError(
                f"A key needs a name of 1 to {_NAME_LENGTH} characters.",
                "Say who uses it: keys create --name 'Ada, lab 3'.",
            )
        if not scopes:
            raise KeyStoreError("A key needs a scope.", f"Choose from {', '.join(Scope)}.")
        token, parsed = make_token(secrets.token_bytes(40))
        with self._open(create=True) as connection, connection:
            connection.execute(
                "INSERT INTO key VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, ?, ?)",
                (
                    parsed.key_id,
                    parsed.digest,
                    name.strip(),
                    " ".join(sorted(scopes)),
                    now,
                    expires,
                    requests_per_minute,
                    bytes_per_day,
                ),
            )
        found = self.get(parsed.key_id)
        assert found is not None
        return CreatedKey(token, found)

    def all(self) -> list[KeyInfo]:
        """Every key ever made, oldest first; empty when there is no file."""
        if not self.path.exists():
            return []
        with self._open() as connection:
            return [_info(row) for row in connection.execute(_SELECT + " ORDER BY created, id")]

    def get(self, key_id: str) -> KeyInfo | None:
        """The key with this id."""
        row = self._row(key_id)
        return None if row is None else _info(row)

    def verify(self, token: Token) -> KeyInfo | None:
        """The stored key that this one is; None for an unknown id or another secret. Validity is not looked at."""
        row = self._row(token.key_id)
        # Compared also without a row, so that the time taken does not tell which ids exist.
        same = hmac.compare_digest(token.digest, row[-1] if row is not None else bytes(32))
        return _info(row) if row is not None and same else None

    def revoke(self, key_id: str, now: float) -> KeyInfo:
        """End a key; a key that was revoked before keeps its time. KeyStoreError for an unknown id."""
        if self._row(key_id) is None:
            raise KeyStoreError(f"There is no key {key_id!r}.", "`post-explorer keys list` shows the ids.")
        with self._open() as connection, connection:
            connection.execute("UPDATE key SET revoked = coalesce(revoked, ?) WHERE id = ?", (now, key_id))
        found = self.get(key_id)
        assert found is not None
        return found

    def touch(self, key_id: str, now: float) -> None:
        """Note that a key was used."""
        with self._open() as connection, connection:
            connection.execute("UPDATE key SET last_used = max(coalesce(last_used, 0), ?) WHERE id = ?", (now, key_id))

    def _row(self, key_id: str) -> tuple[Any, ...] | None:
        if not self.path.exists():
            return None
        with self._open() as connection:
            row: tuple[Any, ...] | None = connection.execute(_SELECT + " WHERE id = ?", (key_id,)).fetchone()
            return row

    @contextmanager
    def _open(self, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        try:
            if create and not self.path.exists():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.touch(mode=0o600)
            with closing(
                sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS)
            ) as found:
                self._prepare(found)
                yield found
        except (sqlite3.Error, OSError) as error:
            raise KeyStoreError(
                f"The key file {self.path} cannot be used: {error}.",
                "Look for wrong permissions or a full disk, or correct EXPLORER_API_ACCESS_KEYS_FILE.",
            ) from error

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == _VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")
        version, objects = (
            connection.execute(text).fetchone()[0]
            for text in ("PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if version == 0 and objects == 0:
            connection.execute(_SCHEMA)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.commit()
        if version not in (0, _VERSION) or (version == 0 and objects):
            raise KeyStoreError(
                f"The key file {self.path} was written by something else or by a newer release (version {version}).",
                "Correct EXPLORER_API_ACCESS_KEYS_FILE, or use the release that wrote it.",
            )


def _info(row: tuple[Any, ...]) -> KeyInfo:
    key_id, name, scopes, *rest = row[:-1]
    return KeyInfo(str(key_id), str(name), frozenset(Scope(text) for text in str(scopes).split()), *rest)


def create_key(
    path: Path,
    *,
    name: str,
    scopes: frozenset[Scope],
    days: float | None,
    now: float,
    requests_per_minute: int | None = None,
    bytes_per_day: int | None = None,
) -> CreatedKey:
    """`post-explorer keys create`: a key that is valid for `days`, None = until revoked. Raises KeyStoreError."""
    if days is not None and days <= 0:
        raise KeyStoreError(f"A key cannot be valid for {days:g} days.", "Give a positive number, or none for no end.")
    return KeyStore(path).create(
        name=name,
        scopes=scopes,
        expires=None if days is None else now + days * 86_400,
        requests_per_minute=requests_per_minute,
        bytes_per_day=bytes_per_day,
        now=now,
    )


def list_keys(path: Path) -> list[KeyInfo]:
    """`post-explorer keys list`: every key, oldest first. Raises KeyStoreError."""
    return KeyStore(path).all()


def revoke_key(path: Path, key_id: str, *, now: float) -> KeyInfo:
    """`post-explorer keys revoke`: ends a key; a running service notices within `key_cache_seconds`. Raises KeyStoreError."""
    return KeyStore(path).revoke(key_id, now)
