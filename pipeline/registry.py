"""Client of a Confluent-compatible Schema Registry (Redpanda's, Apicurio's): register, look up, hold compatibility.

Used only when a registry URL is set. Schemas are registered under the subject `<topic>-value`, every released version in
order, with compatibility BACKWARD_TRANSITIVE or stricter, so that the registry refuses what readers could not read.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from typing import Any, Final
from urllib.parse import quote

import httpx
from fastavro.schema import SchemaParseException, to_parsing_canonical_form

from pipeline.registry_settings import RegistrySettings
from schemas.avro_schemas import AvroSchema, released, schema_by_fingerprint
from schemas.errors import ExplorerError
from schemas.framing import SchemaRef
from schemas.topics import TOPICS

logger = logging.getLogger("explorer.registry")

COMPATIBILITY: Final = "BACKWARD_TRANSITIVE"
STRICT_ENOUGH: Final = frozenset({COMPATIBILITY, "FULL_TRANSITIVE"})
MEDIA_TYPE: Final = "application/vnd.schemaregistry.v1+json"
MAX_SCHEMA_BYTES: Final = 4 * 1024 * 1024


class RegistryError(ExplorerError):
    """The registry gave an answer that makes going on wrong: refused credentials, an invalid or incompatible schema."""


class RegistryUnavailableError(ExplorerError):
    """The registry gave no usable answer within the bounded attempts; the same call may succeed later."""


class SchemaRegistry:
    """A connection to one registry; calls block for at most attempts × timeout plus backoff. Safe to use from threads."""

    def __init__(self, settings: RegistrySettings) -> None:
        self._settings = settings
        credentials = None
        if settings.username is not None:
            secret = settings.password.get_secret_value() if settings.password is not None else ""
            credentials = httpx.BasicAuth(settings.username, secret)
        if settings.tls_ca is not None and not settings.tls_ca.is_file():
            raise RegistryError(f"the TLS file {settings.tls_ca} does not exist", "correct the path in the settings")
        self._client = httpx.Client(
            base_url=settings.url.rstrip("/") + "/",
            timeout=settings.timeout_seconds,
            auth=credentials,
            headers={"Accept": f"{MEDIA_TYPE}, application/json", "Content-Type": MEDIA_TYPE},
            verify=str(settings.tls_ca) if settings.tls_ca is not None else True,
        )
        # id → (schema or None, monotonic time at which a None may be asked again)
        self._by_id: OrderedDict[int, tuple[AvroSchema | None, float]] = OrderedDict()
        self._guard = threading.Lock()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def __enter__(self) -> SchemaRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def register(self, subject: str, schema_text: str) -> int:
        """Registers a schema and returns its id; the same text under any subject has the same id.

        Raises RegistryError when it is not compatible with the subject's earlier versions.
        """
        body = {"schema": schema_text, "schemaType": "AVRO"}
        answer = self._call("POST", f"subjects/{quote(subject, safe='')}/versions", body)
        return self._integer(answer, "id")

    def schema_text(self, schema_id: int) -> str | None:
        """The schema with this id as the registry stores it; None when there is none. Not cached."""
        answer = self._call("GET", f"schemas/ids/{schema_id}", missing_ok=True)
        if answer is None:
            return None
        text = answer.get("schema")
        if not isinstance(text, str) or answer.get("schemaType", "AVRO") != "AVRO":
            return None
        return text if len(text) <= MAX_SCHEMA_BYTES else None

    def compatibility(self, subject: str) -> str | None:
        """The compatibility level set for this very subject; None when the registry's default applies."""
        answer = self._call("GET", f"config/{quote(subject, safe='')}", missing_ok=True)
        return None if answer is None else str(answer.get("compatibilityLevel"))

    def require_compatibility(self, subject: str) -> None:
        """Sets BACKWARD_TRANSITIVE for a subject unless it already has that or stricter."""
        if self.compatibility(subject) not in STRICT_ENOUGH:
            self._call("PUT", f"config/{quote(subject, safe='')}", {"compatibility": COMPATIBILITY})

    def is_compatible(self, subject: str, schema_text: str) -> bool:
        """Whether the registry would accept this schema as the subject's next version; True for a new subject."""
        path = f"compatibility/subjects/{quote(subject, safe='')}/versions"
        answer = self._call("POST", path, {"schema": schema_text, "schemaType": "AVRO"}, missing_ok=True)
        return answer is None or bool(answer.get("is_compatible"))

    def lookup(self, reference: SchemaRef) -> AvroSchema | None:
        """The released schema a message names by registry id or by fingerprint; None when we never released it.

        A schema that this release does not know is None too, also if the registry has it: reading it with fewer fields
        would lose data, so its messages are set aside until the program is updated. Ids are cached, unknown ones for a
        while. Raises RegistryUnavailableError.
        """
        if reference.kind == "fingerprint":
            return schema_by_fingerprint(reference.value)
        now = time.monotonic()
        with self._guard:
            known = self._by_id.get(reference.value)
            if known is not None and (known[0] is not None or now < known[1]):
                self._by_id.move_to_end(reference.value)
                return known[0]
        text = self.schema_text(reference.value)
        schema = None if text is None else _released_equal(text)
        if schema is None:
            what = "no schema" if text is None else "a schema that this release does not know"
            logger.warning("registry id %d has %s", reference.value, what)
        with self._guard:
            self._by_id[reference.value] = (schema, now + self._settings.unknown_id_seconds)
            while len(self._by_id) > self._settings.cached_ids:
                self._by_id.popitem(last=False)
        return schema

    def _call(
        self, method: str, path: str, body: dict[str, str] | None = None, *, missing_ok: bool = False
    ) -> dict[str, Any] | None:
        """One call with bounded repetition; None for "not found" if `missing_ok`."""
        failure = ""
        for attempt in range(self._settings.attempts):
            if attempt:
                wait = self._settings.backoff_seconds * 2 ** (attempt - 1)
                time.sleep(wait * random.uniform(0.5, 1.0))
            try:
                response = self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                failure = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == 404 and missing_ok:
                return None
            if response.status_code in (408, 425, 429) or response.status_code >= 500:
                failure = f"status {response.status_code}: {response.text[:200]}"
                continue
            return self._answer(response, path)
        raise RegistryUnavailableError(
            f"the Schema Registry at {self._settings.url} gives no usable answer: {failure}",
            "check that it runs and that EXPLORER_SCHEMA_REGISTRY names it; the call is safe to repeat",
        )

    def _answer(self, response: httpx.Response, path: str) -> dict[str, Any]:
        detail = response.text[:500]
        where = f"the Schema Registry at {self._settings.url}"
        if response.status_code in (401, 403):
            raise RegistryError(f"{where} refuses the user: {detail}", "correct the registry's user and password")
        if response.status_code == 409:
            raise RegistryError(
                f"{where} refuses the schema for {path}: not compatible with its earlier versions: {detail}",
                "a released schema is never edited: restore it and add a compatible new version beside it",
            )
        if response.status_code == 422:
            raise RegistryError(f"{where} calls the request for {path} invalid: {detail}", "check the schema's text")
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_success and isinstance(document, dict):
            return document
        raise RegistryError(
            f"{where} answered {path} with status {response.status_code}: {detail}",
            "check that EXPLORER_SCHEMA_REGISTRY is the base URL of a Confluent-compatible API",
        )

    def _integer(self, answer: dict[str, Any] | None, member: str) -> int:
        value = (answer or {}).get(member)
        if not isinstance(value, int):
            raise RegistryError(
                f"the Schema Registry at {self._settings.url} answered without {member!r}: {answer}",
                "check that EXPLORER_SCHEMA_REGISTRY is the base URL of a Confluent-compatible API",
            )
        return value


def register_schemas(registry: SchemaRegistry) -> dict[str, int]:
    """Registers every released version of every topic's schema and returns the newest one's id by schema name.

    Safe to repeat and to run in several processes: registering a known schema changes nothing. Raises RegistryError when
    the registry holds something incompatible under our subjects, RegistryUnavailableError when it does not answer.
    """
    ids: dict[str, int] = {}
    for topic in TOPICS.values():
        subject = f"{topic.name}-value"
        registry.require_compatibility(subject)
        versions = sorted((s for s in released().values() if s.name == topic.schema), key=lambda s: s.version)
        for schema in versions:
            ids[topic.schema] = registry.register(subject, schema.text)
    return ids


def schema_lookup(registry: SchemaRegistry) -> Callable[[SchemaRef], AvroSchema | None]:
    """`registry.lookup` as the writer wants it: an unreachable registry means that the batch is tried again."""
    from consumers.errors import TryAgain

    def lookup(reference: SchemaRef) -> AvroSchema | None:
        try:
            return registry.lookup(reference)
        except RegistryUnavailableError as error:
            raise TryAgain(error.message) from error

    return lookup


@cache
def _released_by_canonical_form() -> dict[str, AvroSchema]:
    return {to_parsing_canonical_form(json.loads(schema.text)): schema for schema in released().values()}


def _released_equal(text: str) -> AvroSchema | None:
    """The released schema with the same parsing canonical form as `text`: a registry may reformat what it stores."""
    try:
        canonical = to_parsing_canonical_form(json.loads(text))
    except (ValueError, SchemaParseException, KeyError, TypeError, AttributeError, RecursionError):
        return None  # whatever this is, it is no schema of ours
    return _released_by_canonical_form().get(canonical)
