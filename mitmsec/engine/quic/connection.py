"""aioquic's connection with windows that have a size: what a peer may send follows what the other side has taken.

aioquic doubles a window whenever half of it is used, and keeps what came. Here credit is given for so much beyond what
was read, and none for a stream of which the other side still holds too much (`withholds`), nor for the connection while
that holds too much of all (`is_full`). Of streams a peer has a fixed number open at once, and in all.

All that the engine takes from aioquic's private parts is in this file and in `hello`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection, QuicReceiveContext
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from mitmsec.engine.quic.hello import NAMES, Hello
from mitmsec.engine.seams import Encapsulation

STREAM_WINDOW_BYTES = 1 << 19
WINDOW_BYTES = 1 << 21
STREAMS_LIMIT = 128  # open at once; as many as aioquic begins with
STREAMS_IN_ALL_LIMIT = 1 << 16  # then a client begins another connection: aioquic remembers each
FRAME_BYTES = 17  # MAX_STREAM_DATA, the largest of the frames below (RFC 9000 §19.10)


class Connection(QuicConnection):
    """One side of one QUIC connection, without a socket."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        original_destination: bytes | None = None,
        *,
        encapsulation: Callable[[], Encapsulation | None] = lambda: None,
    ) -> None:
        """A client's offers the hybrid group where `encapsulation` makes a key for that."""
        configuration.max_data, configuration.max_stream_data = WINDOW_BYTES, STREAM_WINDOW_BYTES
        super().__init__(configuration=configuration, original_destination_connection_id=original_destination)
        self.withholds: Callable[[int], bool] = lambda stream_id: False
        self.is_full: Callable[[], bool] = lambda: False
        self._encapsulation = encapsulation
        self.is_asked = False
        """The server wants a client's certificate, which ended the handshake."""
        self.is_ended_by_peer = False
        if configuration.is_client:  # a server has no business with requests of its own (RFC 9114 §6.1)
            self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = 0

    @property
    def ending(self) -> ConnectionTerminated | None:
        """How it ends, as soon as that is known: aioquic tells it some round trips later."""
        return self._close_event

    # -- what is sent --------------------------------------------------------------------------------------------------
    def say(self, stream_id: int, data: bytes, *, end_stream: bool) -> None:
        """Send on a stream; what comes for one that is over is dropped."""
        stream = self._streams.get(stream_id)
        if stream is None:
            if stream_id in self._streams_finished or self._is_peers(stream_id):
                return
        elif stream.sender._buffer_fin is not None or stream.sender._reset_error_code is not None:
            return
        self.send_stream_data(stream_id, data, end_stream)

    def break_off(self, stream_id: int, error_code: int) -> None:
        """Reset our direction of a stream, once."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.sender._reset_error_code is None and not stream.sender.is_finished:
            stream.sender.reset(error_code)

    def decline(self, stream_id: int, error_code: int) -> None:
        """Ask the peer to send no more on a stream."""
        stream = self._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            stream.receiver.stop(error_code)

    def backlog_bytes(self, stream_id: int) -> int:
        """What the peer has not taken of a stream."""
        stream = self._streams.get(stream_id)
        return len(stream.sender._buffer) if stream is not None else 0

    @property
    def held_bytes(self) -> int:
        """What it has not taken of all."""
        return sum(len(stream.sender._buffer) for stream in self._streams.values())

    # -- what was agreed -----------------------------------------------------------------------------------------------
    @property
    def cipher(self) -> str:
        """As OpenSSL names it, once hellos were exchanged."""
        assert self.tls.key_schedule is not None
        return f"TLS_{self.tls.key_schedule.cipher_suite.name}"

    @property
    def group(self) -> str | None:
        """Of the key exchange, as OpenSSL names it; None where it is not known, as a server's."""
        return NAMES.get(self.tls.group) if isinstance(self.tls, Hello) else None

    @property
    def peer_chain(self) -> tuple[Any, ...]:
        """The peer's certificates as it sent them, its own first; its key has signed the handshake."""
        own = self.tls._peer_certificate
        return () if own is None else (own, *self.tls._peer_certificate_chain)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        if self._is_client:
            self.tls.__class__ = Hello  # aioquic makes one of its own
            assert isinstance(self.tls, Hello)
            self.tls.begin(self._encapsulation())
            # It would be sent that there is none, as by a client without one.
            self.tls._client_handle_certificate_request = self._asked  # type: ignore[method-assign]

    def _asked(self, input_buf: Buffer) -> None:
        self.is_asked = True
        raise tls.AlertHandshakeFailure("no certificate is shown over QUIC")

    def _handle_connection_close_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self.is_ended_by_peer = self._close_event is None
        super()._handle_connection_close_frame(context, frame_type, buf)

    # -- credit --------------------------------------------------------------------------------------------------------
    def _is_peers(self, stream_id: int) -> bool:
        return bool(stream_id & 1) == self._is_client

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        data, streams = self._local_max_data, self._local_max_streams_bidi
        if _is_due(data.used + WINDOW_BYTES - data.value, WINDOW_BYTES) and not self.is_full():
            data.value = data.used + WINDOW_BYTES
        if not self._is_client and _is_due(streams.used + STREAMS_LIMIT - streams.value, STREAMS_LIMIT):
            opened = sum(1 for stream_id in self._streams if self._is_peers(stream_id) and not stream_id & 2)
            allowed = min(streams.used + STREAMS_LIMIT - opened, STREAMS_IN_ALL_LIMIT)
            streams.value = max(streams.value, allowed)
        for limit in (data, streams):
            if limit.value != limit.sent:
                self._write_limit(builder, limit)

    def _write_limit(self, builder: QuicPacketBuilder, limit: Limit) -> None:
        buffer = builder.start_frame(
            limit.frame_type,
            capacity=FRAME_BYTES,
            handler=self._on_connection_limit_delivery,
            handler_args=(limit,),
        )
        buffer.push_uint_var(limit.value)
        limit.sent = limit.value

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream) -> None:
        receiver, stream_id = stream.receiver, stream.stream_id
        if stream_id is None or not stream.max_stream_data_local or receiver.is_finished:
            return
        wanted = receiver.starting_offset() + STREAM_WINDOW_BYTES
        if _is_due(wanted - stream.max_stream_data_local, STREAM_WINDOW_BYTES) and not self.withholds(stream_id):
            stream.max_stream_data_local = wanted
        if stream.max_stream_data_local_sent == stream.max_stream_data_local:
            return
        buffer = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=FRAME_BYTES,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        buffer.push_uint_var(stream_id)
        buffer.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local


def _is_due(credit: int, window: int) -> bool:
    """As much credit is worth a frame."""
    return 2 * credit >= window
