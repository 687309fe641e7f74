"""Producer speed: frame to enqueued record, without and with the socket. Toward 100,000 and 50,000 events/s on one core.

Run: `python benchmarks/producer.py [--events N] [--wire v1|v2] [--bootstrap HOST:PORT]`. Frames come from the simulator's generator
(seeded). Without --bootstrap the records go to librdkafka's mock broker in another process; with it to a real one. The producer
with all its threads is pinned to one core; broker and the server of the socket, processes of their own, to another where there
is one. CPU time is told apart: the producer's own thread, which decodes, encodes and enqueues, and the client library's threads,
which compress and send. "Per core" counts both.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from producers import wire_v1, wire_v2
from producers.config import ProducerSettings, SourceSettings
from producers.connection import open_connection
from producers.cursor import LowWaterMark
from producers.dead_letters import Ceiling
from producers.intake import Counts, Intake
from producers.publisher import Publisher
from producers.resume import resume_live
from producers.resyncs import Resyncs
from producers.session import Session
from schemas.codec import EventEncoder
from schemas.framing import SingleObjectFraming

WIRES = {"v1": wire_v1, "v2": wire_v2}
CHUNK = 480


def main(arguments: Sequence[str]) -> None:
    """Print the inputs and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--wire", choices=sorted(WIRES), default="v2")
    parser.add_argument("--bootstrap", default=None)
    parser.add_argument("--serve", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--broker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve is not None:
        serve(options.serve)
        return
    if options.broker:
        broker()
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    frames = make_frames(options.events, options.wire)
    size = sum(map(len, frames)) / len(frames)
    print(f"inputs: {len(frames):,} frames of wire {options.wire}, mean {size:.0f} bytes, simulator seed 1")
    print(
        f"        broker {options.bootstrap or 'librdkafka mock, another process'}; Python {platform.python_version()},"
        f" producer pinned to core {cores[0]} of {os.cpu_count()} ({platform.machine()}), others to core {cores[-1]}"
    )
    print(f"decode                              {decode_only(frames, options.wire):>10,.0f} events/s")
    print(f"decode + encode                     {decode_encode(frames, options.wire):>10,.0f} events/s")
    with broker_address(options.bootstrap, cores[-1]) as address:
        print(f"{'frame -> enqueued, without socket':<36}{without_socket(frames, options.wire, address)}")
        print(f"{'frame -> enqueued, through a socket':<36}{with_socket(frames, options.wire, address, cores[-1])}")


@dataclass(frozen=True)
class Spent:
    """What handing over `events` took: seconds of the clock until the last was enqueued, CPU of the own thread until then, and
    CPU of the client library's threads until all was acknowledged."""

    events: int
    wall: float
    own: float
    client: float

    def __str__(self) -> str:
        return (
            f"{self.events / (self.own + self.client):>10,.0f} events/s per core;"
            f" own thread {self.own / self.events * 1e6:.2f} us, client threads {self.client / self.events * 1e6:.2f} us an event;"
            f" {self.events / self.wall:,.0f} events/s of wall time"
        )


@contextmanager
def broker_address(given: str | None, core: int) -> Iterator[str]:
    """The address of the broker to use: `given`, or that of a mock broker which runs as long as the block."""
    if given is not None:
        yield given
        return
    process = subprocess.Popen(
        [sys.executable, __file__, "--broker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    os.sched_setaffinity(process.pid, {core})
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def broker() -> None:
    """Run librdkafka's mock broker until killed; says where it listens."""
    from pipeline.kafka import KafkaSettings, make_producer

    client = make_producer(KafkaSettings(bootstrap="mock:1"), **{"test.mock.num.brokers": 1})
    (found,) = client.list_topics(timeout=10).brokers.values()
    print(f"{found.host}:{found.port}", flush=True)
    sys.stdin.read()


def make_frames(count: int, wire: str) -> list[bytes]:
    """Frames of a small synthetic network, as the simulator writes them to its log."""
    from simulator.config import SimulatorSettings
    from simulator.ledger import Ledger
    from simulator.network import Network
    from simulator.wire import v1_frame

    with tempfile.TemporaryDirectory() as folder:
        settings = SimulatorSettings(data_dir=Path(folder), history_hours=0, accounts=20_000)
        network = Network(settings)
        start = time.time_ns() // 1000 - 3_600_000_000
        while network.log.position < min(count, 100_000):
            network.live(1024, start, start + 1_000_000)
            start += 1_000_000
        network.close()
        events = [
            event for event in Ledger(folder).events() if wire == "v2" or not (event.kind == "sync" or event.resync)
        ]
    frames = [
        event.raw if wire == "v2" else v1_frame(event.raw, event.seq, event.time_us, cursor=True) for event in events
    ]
    return (frames * (count // len(frames) + 1))[:count]


def decode_only(frames: list[bytes], wire: str) -> float:
    """Events per CPU second of the wire's decoder alone."""
    decode = WIRES[wire].decode
    start = time.thread_time()
    for frame in frames:
        decode(frame)
    return len(frames) / (time.thread_time() - start)


def decode_encode(frames: list[bytes], wire: str) -> float:
    """Events per CPU second up to the Avro body."""
    decode, encoder = WIRES[wire].decode, EventEncoder("bench", wire)
    start = time.thread_time()
    for frame in frames:
        event: Any = decode(frame)
        if hasattr(event, "record"):
            encoder.commit(
                event.time_us, event.did, event.operation, event.collection, event.rkey, event.rev, event.cid,
                event.seq, 0, False, False, event.envelope_json, event.record,
            )  # fmt: skip
    return len(frames) / (time.thread_time() - start)


def make_kafka_producer(bootstrap: str, **overrides: Any) -> Any:
    """A client with the product's own settings."""
    from pipeline.kafka import KafkaSettings, make_producer

    return make_producer(KafkaSettings(bootstrap=bootstrap), **overrides)


def new_intake(wire: str, bootstrap: str) -> tuple[Publisher, LowWaterMark, Intake]:
    """The product's own objects, with a queue that holds the whole run."""
    mark = LowWaterMark()
    settings = ProducerSettings(queue_events=5_000_000, queue_mebibytes=2000)
    publisher = Publisher(
        partial(make_kafka_producer, bootstrap), SingleObjectFraming(), settings, mark, lambda *refused: None
    )
    intake = Intake("bench", wire, 0, publisher, Ceiling(0.2, 5000), Counts(), Resyncs())
    return publisher, mark, intake


def without_socket(frames: list[bytes], wire: str, bootstrap: str) -> Spent:
    """From frame to the client's queue, acknowledgements taken in on the way."""
    publisher, mark, intake = new_intake(wire, bootstrap)
    decode = WIRES[wire].decode
    meter = Meter()
    for at in range(0, len(frames), CHUNK):
        batch, receipt = publisher.begin()
        chunk = frames[at : at + CHUNK]
        intake.take(zip(chunk, map(decode, chunk), strict=True), time.time_ns() // 1000, batch, receipt)
        mark.seal(batch, intake.position)
        publisher.poll()
    meter.enqueued()
    assert publisher.flush(60) == 0
    del receipt
    assert mark.safe_position == intake.position
    return meter.spent(len(frames))


class Meter:
    """Counts from its making: to the last event enqueued for the own thread, to the last acknowledgement for the others."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), time.thread_time(), time.process_time())

    def enqueued(self) -> None:
        """The last event is in the client's queue."""
        self._enqueued = (time.perf_counter(), time.thread_time())

    def spent(self, events: int) -> Spent:
        """Everything is acknowledged."""
        wall, own, every = self._start
        others = time.process_time() - every - (time.thread_time() - own)
        return Spent(events, self._enqueued[0] - wall, self._enqueued[1] - own, others)


def with_socket(frames: list[bytes], wire: str, bootstrap: str, server_core: int) -> Spent:
    """The same through a websocket whose server, another process, sends as fast as it can."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stream"
        with path.open("wb") as stream:
            for frame in frames:
                stream.write(server_frame(frame))
        server = subprocess.Popen([sys.executable, __file__, "--serve", str(path)], stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(server.pid, {server_core})
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            publisher, mark, intake = new_intake(wire, bootstrap)
            connection = open_connection(f"ws://127.0.0.1:{port}/", timeout=10, max_size=2**25)
            meter = Meter()
            session = Session(
                connection, intake, WIRES[wire].decode, resume_live(), "bench", wire, publisher, mark,
                SourceSettings(hosts=("ws://bench",)), ProducerSettings(), None, lambda now: False, lambda gap: None,
            )  # fmt: skip
            session.run(threading.Event())
            meter.enqueued()
            assert publisher.flush(60) == 0
            return meter.spent(len(frames))
        finally:
            server.kill()
            server.wait()


def server_frame(payload: bytes) -> bytes:
    """One unmasked websocket text frame."""
    if len(payload) < 126:
        return bytes((0x81, len(payload))) + payload
    if len(payload) < 65536:
        return bytes((0x81, 126)) + len(payload).to_bytes(2, "big") + payload
    return bytes((0x81, 127)) + len(payload).to_bytes(8, "big") + payload


def serve(path: Path) -> None:
    """Accept one websocket, send the file as it is, close."""
    from websockets.server import ServerProtocol

    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    protocol = ServerProtocol()
    while not (events := protocol.events_received()):
        protocol.receive_data(connection.recv(65536))
    protocol.send_response(protocol.accept(events[0]))  # type: ignore[arg-type]
    connection.sendall(b"".join(protocol.data_to_send()))
    with path.open("rb") as stream:
        connection.sendfile(stream)
    protocol.send_close(1000)
    connection.sendall(b"".join(protocol.data_to_send()))
    connection.recv(65536)


if __name__ == "__main__":
    main(sys.argv[1:])
