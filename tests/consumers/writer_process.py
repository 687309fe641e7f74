"""A writer as a process of its own, for tests that kill it: `python -m tests.consumers.writer_process '<json>'`."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from consumers.config import WriterConfig
from consumers.service import WriterService
from lake.manifest import open_manifest
from lake.steps import hook_from_environment
from lake.store import LakeStore
from pipeline.kafka import KafkaSettings, consumer_properties, make_consumer, make_producer
from schemas.errors import ExplorerError


def main() -> int:
    arguments = json.loads(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s %(name)s")
    kafka = KafkaSettings(bootstrap=arguments["bootstrap"])
    status = Path(arguments["status"]) if "status" in arguments else None

    def report(facts: Mapping[str, object]) -> None:
        if status is not None:
            status.write_text(json.dumps(facts))

    hook = hook_from_environment(os.environ)
    manifest = open_manifest(arguments["manifest"], hook=hook)
    service = WriterService(
        WriterConfig(**arguments["config"]),
        manifest,
        LakeStore(arguments["lake"]),
        partial(make_consumer, kafka),
        partial(make_producer, kafka, linger_ms=5),
        report,
        properties_factory=partial(consumer_properties, kafka),
        hook=hook,
    )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        service.run(stop)
    except ExplorerError as error:
        logging.getLogger("explorer.consumers").error("%s", error)
        return error.exit_code
    finally:
        manifest.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
