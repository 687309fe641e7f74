"""The peer: Quix Streams' local file sink on one topic, in a virtual environment of its own (it is not in our lock).

Called by `python -m benchmarks.writer --peer PYTHON`, where PYTHON is an interpreter with `pip install quixstreams pyarrow`.
Prints one JSON object: rows, wall seconds and CPU seconds from the first message processed to the last file written.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main(options: dict[str, Any]) -> None:
    """Sink `options["rows"]` messages of a topic to Parquet, committing every `options["batch_rows"]`."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    from quixstreams import Application
    from quixstreams.models.serializers.avro import AvroDeserializer
    from quixstreams.sinks.community.file.local import LocalFileSink

    class SingleObject(AvroDeserializer):  # type: ignore[misc] # the peer is not installed where we type-check
        """Avro single-object encoding: the schema is known, the ten bytes in front are skipped."""

        def __call__(self, value: bytes, ctx: Any) -> Any:
            """Decode one value."""
            return super().__call__(value[10:], ctx)

    times: list[tuple[float, float]] = []
    files = [0]

    class TimedSink(LocalFileSink):  # type: ignore[misc]
        """Notes when each file was written."""

        def write(self, batch: Any) -> None:
            """Write one batch of one partition."""
            super().write(batch)
            files[0] += 1
            times.append((time.perf_counter(), time.process_time()))

    app = Application(
        broker_address=options["bootstrap"],
        consumer_group="peer",
        auto_offset_reset="earliest",
        commit_every=options["batch_rows"],
        commit_interval=3600,
        loglevel="ERROR",
        state_dir=options["state"],
    )
    schema = json.loads(Path(options["schema"]).read_text())
    topic = app.topic(options["topic"], value_deserializer=SingleObject(schema=schema))
    frame = app.dataframe(topic)

    def begin(value: Any) -> Any:
        if not times:
            times.append((time.perf_counter(), time.process_time()))
        return value

    frame.apply(begin).sink(TimedSink(directory=options["folder"], format="parquet"))
    app.run(count=options["rows"], timeout=60)
    (first_wall, first_cpu), (last_wall, last_cpu) = times[0], times[-1]
    print(
        json.dumps(
            {"rows": options["rows"], "files": files[0], "wall": last_wall - first_wall, "cpu": last_cpu - first_cpu}
        )
    )


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
