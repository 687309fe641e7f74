"""Fetches Java artifacts by jgo from a lock with digests into a folder of the checkout; no Maven and no system Java."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import ssl
import tempfile
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jgo.maven import MavenContext

from schemas.errors import ExplorerError

logger = logging.getLogger("explorer.java")

FETCH_TIMEOUT_SECONDS = 30
FETCH_ATTEMPTS = 3
FETCH_THREADS = 6


class ArtifactError(ExplorerError):
    """A Java artifact could not be fetched, or what was fetched is not what the lock says."""


@dataclass(frozen=True, slots=True)
class LockedArtifact:
    """One artifact of a jgo lock: Maven coordinates and the digest its file must have."""

    group: str
    name: str
    version: str
    sha256: str
    packaging: str = "jar"
    classifier: str = ""

    @property
    def filename(self) -> str:
        """File name as the repository has it."""
        suffix = f"-{self.classifier}" if self.classifier else ""
        return f"{self.name}-{self.version}{suffix}.{self.packaging}"

    def __str__(self) -> str:
        return f"{self.group}:{self.filename}"


def read_lock(path: Path) -> list[LockedArtifact]:
    """The artifacts of a `jgo.lock.toml`; raises ArtifactError if it is missing, unreadable or lacks a digest."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        return [
            LockedArtifact(
                group=entry["groupId"],
                name=entry["artifactId"],
                version=entry["version"],
                sha256=entry["sha256"],
                packaging=entry.get("packaging", "jar"),
                classifier=entry.get("classifier", ""),
            )
            for entry in document["dependencies"]
        ]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise ArtifactError(
            f"the lock of Java artifacts {path} cannot be used: {error!r}",
            "run from a complete checkout of the project, or restore the file with `git checkout`",
        ) from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ensure_artifacts(artifacts: list[LockedArtifact], folder: Path) -> list[Path]:
    """Makes `folder` hold every artifact with the locked digest and returns their paths in lock order.

    Present files are verified every time (0.1 s for Kafka's 45 MB) and fetched anew if damaged. Blocks while fetching;
    several processes may call it for the same folder, one of them fetches. Raises ArtifactError with the remedy when a
    file cannot be fetched or does not have its digest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if missing := _missing(artifacts, folder):
        with _exclusive(folder / ".lock"):
            missing = _missing(missing, folder)  # another process may have fetched them while we waited
            if missing:
                logger.info("fetching %d Java artifacts into %s", len(missing), folder)
                _fetch_all(missing, folder)
    return [folder / artifact.filename for artifact in artifacts]


def _missing(artifacts: list[LockedArtifact], folder: Path) -> list[LockedArtifact]:
    def is_missing(artifact: LockedArtifact) -> bool:
        path = folder / artifact.filename
        return not path.is_file() or file_sha256(path) != artifact.sha256

    return [artifact for artifact in artifacts if is_missing(artifact)]


def _fetch_all(artifacts: list[LockedArtifact], folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch, _system_certificates():
        context = MavenContext(repo_cache=Path(scratch), timeout=FETCH_TIMEOUT_SECONDS)
        with ThreadPoolExecutor(max_workers=min(FETCH_THREADS, len(artifacts))) as pool:
            for future in [pool.submit(_fetch, context, artifact, folder) for artifact in artifacts]:
                future.result()


def _fetch(context: MavenContext, artifact: LockedArtifact, folder: Path) -> None:
    failure = ""
    for _ in range(FETCH_ATTEMPTS):
        remote = context.project(artifact.group, artifact.name).at_version(artifact.version)
        remote_file = remote.artifact(classifier=artifact.classifier, packaging=artifact.packaging)
        try:
            fetched: Path = remote_file.resolve()
        except Exception as error:
            failure = _cause(error)
        else:
            digest = file_sha256(fetched)
            if digest == artifact.sha256:
                fetched.replace(folder / artifact.filename)
                return
            failure = f"its SHA-256 is {digest}, the lock says {artifact.sha256}"
        # jgo writes straight to the final name, so a broken transfer would be taken for the artifact next time.
        shutil.rmtree(context.repo_cache / artifact.group.replace(".", "/") / artifact.name, ignore_errors=True)
    raise ArtifactError(
        f"cannot fetch the Java artifact {artifact}: {failure}",
        "check this machine's way to the Maven repository (proxy: HTTPS_PROXY, own certificates: REQUESTS_CA_BUNDLE), "
        f"or copy the file into {folder} by hand; to use another broker instead set EXPLORER_KAFKA_BOOTSTRAP",
    )


def _cause(error: BaseException) -> str:
    """The innermost message of a chain of exceptions: the outer ones only repeat it with addresses and object ids."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}"


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _system_certificates() -> Iterator[None]:
    """Lets jgo trust the machine's certificate store, as pip does: by default it only knows the bundle it ships with."""
    bundle = ssl.get_default_verify_paths().cafile
    if bundle is None or "REQUESTS_CA_BUNDLE" in os.environ or "CURL_CA_BUNDLE" in os.environ:
        yield
        return
    os.environ["REQUESTS_CA_BUNDLE"] = bundle
    try:
        yield
    finally:
        del os.environ["REQUESTS_CA_BUNDLE"]
