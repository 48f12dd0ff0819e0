"""What one HTTP/2 peer may make a worker keep and do."""

from __future__ import annotations

import h2.events
import h2.exceptions
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.engine import frames
from mitmsec.engine.frames import BoundedConnection, Flood, FrameMeter

PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
RST_STREAM = b"\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x08"
WINDOW_UPDATE = b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x01"
PRIORITY = b"\x00\x00\x05\x02\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00"
CONTINUATION = b"\x00\x00\x00\x09\x00\x00\x00\x00\x01"
UNKNOWN = b"\x00\x00\x00\x99\x00\x00\x00\x00\x00"
EMPTY_DATA = b"\x00\x00\x00\x00\x00\x00\x00\x00\x01"
LAST_DATA = b"\x00\x00\x00\x00\x01\x00\x00\x00\x01"
DATA = b"\x00\x00\x01\x00\x00\x00\x00\x00\x01x"
HEADERS = b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x82"


def meter() -> FrameMeter:
    return FrameMeter(has_preface=False, now_s=0.0)


@pytest.mark.parametrize("frame", [PING, SETTINGS, WINDOW_UPDATE, PRIORITY, CONTINUATION, UNKNOWN, EMPTY_DATA])
def test_frames_that_carry_nothing_are_a_flood_beyond_the_burst(frame: bytes) -> None:
    made = meter()
    assert made.allows(frame * int(frames.BURST), 0.0)
    assert not made.allows(frame, 0.0)


def test_a_reset_costs_more_than_a_ping() -> None:
    made = meter()
    assert made.allows(RST_STREAM * (int(frames.BURST) // frames.RESET_COST), 0.0)
    assert not made.allows(RST_STREAM, 0.0)


@pytest.mark.parametrize("frame", [DATA, HEADERS, LAST_DATA])
def test_frames_that_carry_something_cost_nothing(frame: bytes) -> None:
    made = meter()
    for _ in range(10):
        assert made.allows(frame * int(frames.BURST), 0.0)
    assert made.allows(PING * int(frames.BURST), 0.0)


def test_time_and_what_we_send_fill_the_purse_but_not_beyond_the_burst() -> None:
    made = meter()
    assert made.allows(PING * int(frames.BURST), 0.0)
    assert made.allows(PING * int(frames.PER_S), 1.0)
    made.earn(1 << 20)
    assert made.allows(PING * 130, 1.0)
    made.earn_reset()
    assert made.allows(RST_STREAM, 1.0)
    assert made.allows(b"", 1_000_000.0)
    assert not made.allows(PING * (int(frames.BURST) + 1), 1_000_000.0)


@pytest.mark.checklist("C9")
@given(st.lists(st.sampled_from([PING, DATA, RST_STREAM, HEADERS, EMPTY_DATA]), max_size=40), st.data())
def test_any_split_gives_the_same_answer(sent: list[bytes], data: st.DataObject) -> None:
    whole, split = (FrameMeter(has_preface=True, now_s=0.0) for _ in range(2))
    stream = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(sent)
    assert whole.allows(stream, 0.0)
    rest = stream
    while rest:
        size = data.draw(st.integers(min_value=1, max_value=len(rest)))
        assert split.allows(rest[:size], 0.0)
        rest = rest[size:]
    for made in (whole, split):
        left = int(frames.BURST) - sum(frames.RESET_COST * (f == RST_STREAM) + (f in (PING, EMPTY_DATA)) for f in sent)
        assert made.allows(PING * left, 0.0)
        assert not made.allows(PING, 0.0)


# --- a connection -----------------------------------------------------------------------------------------------------
def pair(*, window_bytes: int | None = None) -> tuple[BoundedConnection, H2Connection]:
    """Ours, a server, and a client's, whose streams have a window of `window_bytes`."""
    ours = BoundedConnection(H2Configuration(client_side=False))
    theirs = H2Connection(H2Configuration(client_side=True))
    ours.initiate_connection()
    theirs.initiate_connection()
    if window_bytes is not None:
        theirs.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window_bytes})
    talk(ours, theirs)
    return ours, theirs


def talk(ours: BoundedConnection, theirs: H2Connection) -> list[h2.events.Event]:
    """Until neither has anything to say; what the client heard."""
    heard: list[h2.events.Event] = []
    while (up := theirs.data_to_send()) or (down := ours.data_to_send()):
        if up:
            ours.receive_data(up)
        else:
            heard += theirs.receive_data(down)
    return heard


def ask(theirs: H2Connection) -> int:
    stream: int = theirs.get_next_available_stream_id()
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/")]
    theirs.send_headers(stream, fields, end_stream=True)
    return stream


def test_windows_are_as_large_as_they_are_meant_to_be() -> None:
    _, theirs = pair()
    assert theirs.outbound_flow_control_window == frames.CONNECTION_WINDOW_BYTES
    assert theirs.remote_settings.initial_window_size == frames.WINDOW_BYTES


def test_a_list_of_headers_is_bounded_before_the_peer_has_acknowledged_anything() -> None:
    ours = BoundedConnection(H2Configuration(client_side=False))
    assert ours.decoder.max_header_list_size == frames.HEADER_LIST_LIMIT_BYTES


@pytest.mark.checklist("C9")
def test_a_list_of_headers_that_unfolds_beyond_the_limit_is_refused() -> None:
    ours, theirs = pair()
    stream = ask(theirs)
    theirs.reset_stream(stream)
    talk(ours, theirs)
    many = [("x-same", "y" * 3000)] * 100
    fields = [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/"), *many]
    theirs.send_headers(theirs.get_next_available_stream_id(), fields, end_stream=True)
    with pytest.raises(h2.exceptions.ProtocolError):
        ours.receive_data(theirs.data_to_send())


def test_a_flood_is_an_error_before_the_library_looks_at_it() -> None:
    ours, _ = pair()
    with pytest.raises(Flood):
        ours.receive_data(PING * (int(frames.BURST) + 1))
    assert ours.data_to_send() == b""


def test_small_pieces_that_wait_are_joined_and_arrive_in_order() -> None:
    ours, theirs = pair(window_bytes=0)
    stream = ask(theirs)
    talk(ours, theirs)
    ours.send_headers(stream, [(b":status", b"200")])
    whole = bytes(index % 251 for index in range(40_000))
    for index in range(40_000):
        ours.send_data(stream, whole[index : index + 1])
    ours.end_stream(stream)
    assert ours.held_bytes == ours.kept_bytes(stream) == 40_000
    assert len(ours.stream_buffers[stream]) <= 1 + 40_000 // (frames.JOIN_BYTES // 2)
    talk(ours, theirs)
    theirs.increment_flow_control_window(50_000, stream)
    heard = talk(ours, theirs)
    assert b"".join(event.data for event in heard if isinstance(event, h2.events.DataReceived)) == whole
    assert any(isinstance(event, h2.events.StreamEnded) for event in heard)
    assert ours.held_bytes == 0


def test_a_large_piece_that_waits_leaves_in_frames_that_anybody_takes() -> None:
    ours, theirs = pair(window_bytes=0)
    stream = ask(theirs)
    talk(ours, theirs)
    ours.send_headers(stream, [(b":status", b"200")])
    ours.send_data(stream, b"x" * 60_000, end_stream=True)
    assert ours.held_bytes == 60_000
    theirs.increment_flow_control_window(60_000, stream)
    heard = talk(ours, theirs)
    assert sum(len(event.data) for event in heard if isinstance(event, h2.events.DataReceived)) == 60_000
    assert any(isinstance(event, h2.events.StreamEnded) for event in heard)


def test_credit_that_is_taken_back_is_waited_for() -> None:
    """RFC 9113 §6.9.2: a smaller initial window makes the windows of streams negative."""
    ours, theirs = pair(window_bytes=20_000)
    stream = ask(theirs)
    talk(ours, theirs)
    ours.send_headers(stream, [(b":status", b"200")])
    ours.send_data(stream, b"a" * 15_000)
    theirs.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    heard = talk(ours, theirs)
    ours.send_data(stream, b"b" * 1000)
    ours.end_stream(stream)
    assert ours.held_bytes == 1000
    heard += talk(ours, theirs)
    theirs.increment_flow_control_window(16_000, stream)
    heard += talk(ours, theirs)
    said = b"".join(event.data for event in heard if isinstance(event, h2.events.DataReceived))
    assert said == b"a" * 15_000 + b"b" * 1000


@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_trailers_that_wait_are_dropped_with_their_stream(who: str) -> None:
    ours, theirs = pair(window_bytes=0)
    stream = ask(theirs)
    talk(ours, theirs)
    ours.send_headers(stream, [(b":status", b"200")])
    ours.send_data(stream, b"waits")
    ours.send_trailers(stream, [(b"x-end", b"yes")])
    assert ours.stream_trailers
    (ours if who == "ours" else theirs).reset_stream(stream)
    talk(ours, theirs)
    assert not ours.stream_trailers
    assert ours.held_bytes == 0


def test_all_streams_are_looked_at_once_for_all_windows_that_open(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair(window_bytes=1 << 20)
    streams = [ask(theirs) for _ in range(3)]
    talk(ours, theirs)
    for stream in streams:
        ours.send_headers(stream, [(b":status", b"200")])
        ours.send_data(stream, bytes(1 << 16))
    talk(ours, theirs)
    looked: list[int] = []
    update = ours.stream_window_updated
    monkeypatch.setattr(ours, "stream_window_updated", lambda stream: looked.append(stream) or update(stream))
    ours.receive_data(WINDOW_UPDATE * 1000)
    assert 0 < len(looked) <= 2 * len(streams)
