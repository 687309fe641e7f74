"""The frame cutter: any split of the byte stream gives the same messages; what is not plain data is answered as the RFC says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from producers.websocket_frames import BinaryMessage, FrameReader

MAX = 200_000


def open_protocol() -> ClientProtocol:
    protocol = ClientProtocol(parse_uri("ws://host/"), max_size=MAX)
    request = protocol.connect()
    protocol.send_request(request)
    from websockets.server import ServerProtocol

    server = ServerProtocol()
    server.receive_data(b"".join(protocol.data_to_send()))
    server.send_response(server.accept(server.events_received()[0]))  # type: ignore[arg-type]
    protocol.receive_data(b"".join(server.data_to_send()))
    protocol.events_received()
    assert protocol.state is State.OPEN
    return protocol


def wire(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=False)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A server's byte stream and the messages in it, pings and fragments among them."""
    stream, messages = b"", []
    for _ in range(draw(st.integers(0, 8))):
        size = draw(st.sampled_from([0, 1, 2, 125, 126, 127, 300, 65_535, 65_536, 70_000]))
        payload = bytes([draw(st.integers(0, 255))]) * size
        kind = draw(st.sampled_from(["text", "binary", "ping", "pong", "fragments"]))
        if kind == "text":
            stream += wire(Opcode.TEXT, payload)
            messages.append(payload)
        elif kind == "binary":
            stream += wire(Opcode.BINARY, payload)
            messages.append(payload)
        elif kind in ("ping", "pong"):
            stream += wire(Opcode.PING if kind == "ping" else Opcode.PONG, payload[:125])
        else:
            cut = draw(st.integers(0, size))
            stream += wire(Opcode.TEXT, payload[:cut], fin=False)
            stream += wire(Opcode.PING, b"between")
            stream += wire(Opcode.CONT, payload[cut:])
            messages.append(payload)
    return stream, messages


@given(streams(), st.lists(st.integers(1, 70_000), max_size=20))
def test_any_split_gives_the_same_messages(stream: tuple[bytes, list[bytes]], sizes: list[int]) -> None:
    data, expected = stream
    reader = FrameReader(open_protocol(), MAX)
    got: list[bytes] = []
    for size in [*sizes, len(data) + 1]:
        chunk, data = data[:size], data[size:]
        if chunk:
            got += reader.feed(chunk)
    assert got == expected


def test_one_byte_at_a_time() -> None:
    reader = FrameReader(open_protocol(), MAX)
    data = wire(Opcode.TEXT, b"a" * 126) + wire(Opcode.PING, b"p") + wire(Opcode.BINARY, b"b" * 70_000)
    got: list[bytes] = []
    for byte in data:
        got += reader.feed(bytes([byte]))
    assert got == [b"a" * 126, b"b" * 70_000]
    assert [type(message) for message in got] == [bytes, BinaryMessage]


def test_a_ping_is_answered() -> None:
    protocol = open_protocol()
    FrameReader(protocol, MAX).feed(wire(Opcode.PING, b"are you there"))
    answer = b"".join(protocol.data_to_send())
    assert answer[0] == 0x80 | Opcode.PONG


def test_a_close_frame_ends_the_reading() -> None:
    protocol = open_protocol()
    reader = FrameReader(protocol, MAX)
    close = wire(Opcode.CLOSE, (1001).to_bytes(2, "big") + b"server shutting down")
    assert reader.feed(wire(Opcode.TEXT, b"last") + close + b"rubbish after the end") == [b"last"]
    assert protocol.close_rcvd is not None
    assert (protocol.close_rcvd.code, protocol.close_rcvd.reason) == (1001, "server shutting down")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (bytes((0x81, 0x80 | 5)) + b"mask12345", 1002),
        (bytes((0x83, 5)) + b"12345", 1002),
        (bytes((0xC1, 5)) + b"12345", 1002),
        (wire(Opcode.TEXT, b"open", fin=False) + wire(Opcode.TEXT, b"another"), 1002),
        (bytes((0x81, 127)) + (MAX + 1).to_bytes(8, "big"), 1009),
    ],
    ids=["masked by the server", "reserved opcode", "reserved bit", "message inside a message", "larger than allowed"],
)
def test_a_protocol_error_fails_the_connection(data: bytes, code: int) -> None:
    protocol = open_protocol()
    FrameReader(protocol, MAX).feed(data)
    assert protocol.close_sent is not None
    assert protocol.close_sent.code == code
