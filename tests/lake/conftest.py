"""Manifests of both kinds for the tests of this room; PostgreSQL is a real server of the distribution's packages."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from lake.manifest import Manifest, open_manifest
from lake.store import LakeStore

sys.path.insert(0, str(Path(__file__).parent))

_NUMBERS = itertools.count()


def _binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A URL of a running PostgreSQL server that nobody else uses."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    home = Path(tempfile.mkdtemp(prefix="lake-pg-", dir="/tmp"))
    # The server refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user:
        account = pwd.getpwnam(user)
        os.chown(home, account.pw_uid, account.pw_gid)

    def run(*arguments: str) -> None:
        subprocess.run(arguments, user=user, cwd=home, check=True, capture_output=True, timeout=60, env={"LC_ALL": "C"})

    data = home / "data"
    run(str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={home} -c max_connections=60 -c shared_buffers=16MB"
    run(str(binaries / "pg_ctl"), "-D", str(data), "-w", "-l", str(home / "log"), "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={home}"
    finally:
        run(str(binaries / "pg_ctl"), "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgres"])
def manifest_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new manifest may be made; every test gets its own."""
    if request.param == "sqlite":
        return str(tmp_path / "manifest.db")
    server: str = request.getfixturevalue("postgres_server")
    schema = f"t{next(_NUMBERS)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
    return f"{server}&options=-csearch_path%3D{schema}"


@pytest.fixture
def open_again(manifest_url: str) -> Iterator[Callable[..., Manifest]]:
    """Opens the manifest as another process would; all are closed at the end."""
    opened: list[Manifest] = []

    def open_one(**options: Any) -> Manifest:
        opened.append(open_manifest(manifest_url, **{"create": True, **options}))
        return opened[-1]

    yield open_one
    for manifest in opened:
        manifest.close()


@pytest.fixture
def manifest(open_again: Callable[..., Manifest]) -> Manifest:
    """A new manifest."""
    return open_again()


@pytest.fixture
def store(tmp_path: Path) -> LakeStore:
    """An empty lake."""
    return LakeStore(tmp_path / "lake")
