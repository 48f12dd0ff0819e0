"""HTTP/2 at both ends of an engine, with the h2 library: an origin that answers by path, a client for odd requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

HTTP3 = 'h3=":443"; ma=86400'


class Origin:
    """/bytes/N answers N bytes as windows allow, /trailers ends with trailers, /reset resets, else says the path.

    Whoever asks for /elsewhere is told of HTTP/3, in a field and in a frame.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.sent_bytes = 0
        self.reset_streams = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        heads: dict[int, dict[str, str]] = {}
        bodies: defaultdict[int, bytes] = defaultdict(bytes)
        left: dict[int, int] = {}
        while data := await reader.read(65536):
            for event in connection.receive_data(data):
                match event:
                    case h2.events.RequestReceived(stream_id=stream, headers=headers):
                        heads[stream] = texts(headers)
                    case h2.events.DataReceived(stream_id=stream, data=more, flow_controlled_length=size):
                        bodies[stream] += more
                        connection.acknowledge_received_data(size, stream)
                    case h2.events.StreamEnded(stream_id=stream):
                        self.requests.append((heads[stream], bodies[stream]))
                        self._answer(connection, stream, heads[stream][":path"], left)
                    case h2.events.StreamReset():
                        self.reset_streams += 1
                    case _:
                        pass
            self._pump(connection, left)
            writer.write(connection.data_to_send())
            await writer.drain()

    def _answer(self, connection: h2.connection.H2Connection, stream: int, path: str, left: dict[int, int]) -> None:
        if path == "/reset":
            return connection.reset_stream(stream)
        head = [(":status", "200"), ("content-type", "text/plain")]
        if path == "/elsewhere":
            connection.advertise_alternative_service(HTTP3.encode(), stream_id=stream)
            head.append(("alt-svc", HTTP3))
        connection.send_headers(stream, head)
        if path.startswith("/bytes/"):
            left[stream] = int(path.rpartition("/")[2])
        elif path == "/trailers":
            connection.send_data(stream, b"and then")
            connection.send_headers(stream, [("x-end", "yes")], end_stream=True)
        else:
            connection.send_data(stream, f"you asked for {path}".encode(), end_stream=True)

    def _pump(self, connection: h2.connection.H2Connection, left: dict[int, int]) -> None:
        for stream in list(left):
            with contextlib.suppress(h2.exceptions.ProtocolError):
                while left[stream] and (room := connection.local_flow_control_window(stream)) > 0:
                    size = min(left[stream], room, connection.max_outbound_frame_size)
                    left[stream] -= size
                    self.sent_bytes += size
                    connection.send_data(stream, b"x" * size, end_stream=not left[stream])
            if not left[stream]:
                del left[stream]


class Client:
    """A client that takes only what it is told to take."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False)
        self.connection = h2.connection.H2Connection(config)
        self.connection.initiate_connection()
        self.headers: dict[int, dict[str, str]] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.bodies: defaultdict[int, bytes] = defaultdict(bytes)
        self.ended: set[int] = set()
        self.resets: set[int] = set()
        self.alternatives: list[bytes] = []
        self.takes = True

    def request(self, headers: list[tuple[str, str]], body: bytes | None = None) -> int:
        """A stream's number. The body goes out as windows allow, at once."""
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, headers, end_stream=body is None)
        if body is not None:
            self.connection.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def flush(self) -> None:
        self._writer.write(self.connection.data_to_send())

    async def until_ended(self, *streams: int) -> None:
        while not self.ended >= set(streams):
            data = await asyncio.wait_for(self._reader.read(65536), 10)
            if not data:
                raise ConnectionError("ended")
            self._heard(data)

    def _heard(self, data: bytes) -> None:
        for event in self.connection.receive_data(data):
            match event:
                case h2.events.ResponseReceived(stream_id=stream, headers=headers):
                    self.headers[stream] = texts(headers)
                case h2.events.TrailersReceived(stream_id=stream, headers=headers):
                    self.trailers[stream] = texts(headers)
                case h2.events.DataReceived(stream_id=stream, data=more, flow_controlled_length=size):
                    self.bodies[stream] += more
                    if self.takes:
                        self.connection.acknowledge_received_data(size, stream)
                case h2.events.AlternativeServiceAvailable(field_value=alternative):
                    self.alternatives.append(alternative)
                case h2.events.StreamReset(stream_id=stream):
                    self.ended.add(stream)
                    self.resets.add(stream)
                case h2.events.StreamEnded(stream_id=stream):
                    self.ended.add(stream)
                case _:
                    pass
        self.flush()


def texts(headers: Any) -> dict[str, str]:
    return dict(headers)


def get(path: str, authority: str, **more: str) -> list[tuple[str, str]]:
    return [(":method", "GET"), (":scheme", "https"), (":authority", authority), (":path", path), *more.items()]
