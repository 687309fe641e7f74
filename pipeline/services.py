"""How each process is put together: the rooms' services with the settings and clients they need.

One function per process; each returns what `pipeline.runtime.run_service` calls with the process's `report`. Rooms are
imported inside, so that a process loads its own room only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from pipeline.kafka import await_reachable, consumer_properties, make_consumer, make_producer
from pipeline.runtime import Report, Service
from pipeline.settings import Settings
from schemas.framing import Framing, RegistryFraming, SingleObjectFraming

if TYPE_CHECKING:
    from consumers.decode import SchemaLookup
    from consumers.maintenance import MaintenanceService
    from lake.manifest import Manifest
    from lake.store import LakeStore

Make = Callable[[Report], Service]
STOP_ORDER = ("producer", "simulator", "writer", "maintain", "api", "broker")
"""Who stops before whom: sources, then what carries their events into the lake, then what reads it, the broker last."""
ONLY_WRITER = {"EXPLORER_WRITER_INSTANCE_ID": "writer"}
"""For a supervisor that runs one writer: after a crash it gets its partitions back at once (static membership), where a
new member would wait until the broker has given up the dead one."""


def framing(settings: Settings) -> Framing:
    """How values are framed: with registry ids when a registry is set, with schema fingerprints otherwise.

    With a registry every released schema is registered first. Raises RegistryError, RegistryUnavailableError.
    """
    if settings.schema_registry is None:
        return SingleObjectFraming()
    from pipeline.registry import SchemaRegistry, register_schemas

    with SchemaRegistry(settings.schema_registry) as registry:
        return RegistryFraming(register_schemas(registry))


def lookup(settings: Settings) -> SchemaLookup:
    """What finds the schema that a message names: released schemas, and the registry when one is set."""
    from consumers.decode import released_schemas

    if settings.schema_registry is None:
        return released_schemas
    from pipeline.registry import SchemaRegistry, schema_lookup

    return schema_lookup(SchemaRegistry(settings.schema_registry))


def open_lake(settings: Settings) -> tuple[Manifest, LakeStore]:
    """The lake for reading. Raises ManifestUnavailable when there is none yet."""
    from lake.manifest import open_manifest
    from lake.store import LakeStore

    return open_manifest(settings.manifest, read_only=True), LakeStore(settings.lake)


def producer(settings: Settings) -> Make:
    """Socket to topics. Raises KafkaUnreachableError when there is no broker to publish to."""

    def make(report: Report) -> Service:
        from producers.service import ProducerService

        await_reachable(settings.kafka)
        return ProducerService(
            settings.source,
            settings.producer,
            framing=framing(settings),
            # The client's own type stubs are narrower than what it takes; the room names what it uses.
            producer_factory=cast(Callable[..., Any], partial(make_producer, settings.kafka)),
            consumer_factory=cast(Callable[..., Any], partial(make_consumer, settings.kafka)),
            report=report,
        )

    return make


def writer(settings: Settings) -> Make:
    """Topics to lake. Makes the manifest if there is none."""

    def make(report: Report) -> Service:
        from consumers.service import WriterService
        from lake.manifest import open_manifest
        from lake.steps import hook_from_environment
        from lake.store import LakeStore

        await_reachable(settings.kafka)
        hook = hook_from_environment(os.environ)
        return WriterService(
            settings.writer,
            open_manifest(settings.manifest, create=True, hook=hook),
            LakeStore(settings.lake),
            consumer_factory=partial(make_consumer, settings.kafka),
            properties_factory=partial(consumer_properties, settings.kafka),
            producer_factory=partial(make_producer, settings.kafka),
            report=report,
            framing=framing(settings),
            schema_lookup=lookup(settings),
            hook=hook,
        )

    return make


def maintenance(settings: Settings, report: Report) -> MaintenanceService:
    """The maintenance service itself, for one run or for many. Makes the manifest if there is none."""
    from consumers.maintenance import MaintenanceService
    from lake.manifest import open_manifest
    from lake.steps import hook_from_environment
    from lake.store import LakeStore

    hook = hook_from_environment(os.environ)
    manifest = open_manifest(settings.manifest, create=True, hook=hook)
    return MaintenanceService(settings.maintain, manifest, LakeStore(settings.lake), report, hook=hook)


def maintain(settings: Settings) -> Make:
    """Rolling, erasure, retention, clean-up."""
    return partial(maintenance, settings)


def simulator(settings: Settings) -> Make:
    """The synthetic network."""

    def make(report: Report) -> Service:
        from simulator.service import SimulatorService

        return SimulatorService(settings.simulator, report)

    return make


def api(settings: Settings) -> Make:
    """Lake to HTTP."""

    def make(report: Report) -> Service:
        from api.service import ApiService

        return ApiService(settings.api, settings.lake, settings.manifest, report)

    return make
