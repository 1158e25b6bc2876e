"""A gRPC client by hand, on h2: one that sees all headers, and can do what a good client never would."""

import itertools
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import h2.config
import h2.connection
import h2.events
import hpack

EMBED = "/trivec.v1.EmbeddingService/Embed"
EMBED_STREAM = "/trivec.v1.EmbeddingService/EmbedStream"
_PATIENCE_S = 30.0
_READ_BYTES = 1 << 16
_FRAME_HEAD_BYTES = 9
_HEADERS, _SETTINGS, _END_HEADERS = 1, 4, 4
RST_STREAM = 3


def framed(message: bytes) -> bytes:
    """A message of gRPC: not compressed, its length, itself."""
    return struct.pack(">BI", 0, len(message)) + message


def header_frames(method: str = EMBED) -> Iterator[bytes]:
    """The frames that open calls, one after the other, from the beginning of a connection on: of who heeds nothing."""
    encoder = hpack.Encoder()
    head = _head(method)
    yield b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b"")
    for stream in itertools.count(1, 2):
        yield _frame(_HEADERS, _END_HEADERS, stream, encoder.encode(head))


def frame_kinds(connection: socket.socket) -> Iterator[int]:
    """The kinds of the frames that come, until the connection ends."""
    buffer = b""
    while True:
        while len(buffer) >= _FRAME_HEAD_BYTES and len(buffer) >= (end := _FRAME_HEAD_BYTES + _length(buffer)):
            yield buffer[3]
            buffer = buffer[end:]
        try:
            data = connection.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            return
        buffer += data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _length(buffer: bytes) -> int:
    return int.from_bytes(buffer[:3], "big")


def _head(method: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "trivec"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]


@dataclass
class Answer:
    """What has come for one stream. `reset` is the error code of RST_STREAM."""

    headers: dict[str, bytes] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        """gRPC's status code."""
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None


class RawClient:
    """One HTTP/2 connection. `opens_windows` False: the server may send the first 64 KiB of answers, and no more."""

    def __init__(self, target: str, *, opens_windows: bool = True) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), _PATIENCE_S)
        config = h2.config.H2Configuration(client_side=True, header_encoding=None, validate_outbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.opens_windows = opens_windows
        self.answers: dict[int, Answer] = {}
        self.closed = False
        self.goaway: int | None = None
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def flush(self) -> None:
        """Sends what h2 has to say. A connection that the server has closed is `closed`."""
        try:
            self.socket.sendall(self.h2.data_to_send())
        except OSError:
            self.closed = True

    def begin(self, method: str = EMBED, headers: Iterable[tuple[str, str]] = ()) -> int:
        """Opens a call with no message yet; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, [*_head(method), *headers])
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, ends: bool = False) -> None:
        """Sends bytes of a stream, as far as the server's windows allow it for now, reading what opens them."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.read()
                if self.closed or self.answers[stream].ended:
                    return
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
            self.flush()
        if ends:
            self.h2.end_stream(stream)
            self.flush()

    def call(self, method: str, message: bytes, headers: Iterable[tuple[str, str]] = ()) -> Answer:
        """A whole unary call."""
        stream = self.begin(method, headers)
        self.send(stream, framed(message), ends=True)
        return self.wait(stream)

    def wait(self, stream: int) -> Answer:
        """Reads until the stream has ended, or the connection."""
        while not (self.closed or self.answers[stream].ended):
            self.read()
        return self.answers[stream]

    def read(self) -> None:
        """Reads once, and lets the server send as much again."""
        try:
            data = self.socket.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.h2.receive_data(data):
            self._take(event)
        self.flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            received = {_text(name): _bytes(value) for name, value in event.headers or ()}
            self.answers[event.stream_id].headers.update(received)
        elif isinstance(event, h2.events.DataReceived):
            self.answers[event.stream_id].body += event.data
            if self.opens_windows:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.answers[event.stream_id].ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.answers[event.stream_id].ended = True
            self.answers[event.stream_id].reset = int(event.error_code)
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.goaway = int(event.error_code or 0)


def _text(name: str | bytes) -> str:
    return name if isinstance(name, str) else name.decode()


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
