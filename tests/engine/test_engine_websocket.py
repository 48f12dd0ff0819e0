"""Frames, in any pieces."""

from __future__ import annotations

import contextlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol

from mitmsec.engine.content import FREE_BYTES, RATIO_LIMIT
from mitmsec.engine.websocket import BadFrames, Frames, pair


def sent(messages: list[bytes], *, client: bool, deflate: bool) -> bytes:
    extension = PerMessageDeflate()
    if deflate:
        extension.finalize("permessage-deflate")
    protocol = FrameProtocol(client=client, extensions=[extension] if deflate else [])
    data = b""
    for message in messages:
        half = len(message) // 2
        data += protocol.send_data(message[:half], fin=False)
        data += protocol.ping(b"in between")
        data += protocol.send_data(message[half:], fin=True)
    return data + protocol.close(1000)


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("deflate", [True, False])
@given(
    messages=st.lists(st.binary(min_size=2, max_size=300), max_size=5), cuts=st.lists(st.integers(0, 3000), max_size=6)
)
def test_any_split_gives_the_same(client: bool, deflate: bool, messages: list[bytes], cuts: list[int]) -> None:
    data = sent(messages, client=client, deflate=deflate)
    frames, out, at = Frames(deflate=deflate), b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        out += b"".join(frames.feed(data[at:cut]))
        at = cut
    assert out == b"".join(messages)


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize("message", [b"hello", b"x", b""])
def test_the_end_of_a_message_is_told_with_its_last_frame(deflate: bool, message: bytes) -> None:
    extension = PerMessageDeflate()
    if deflate:
        extension.finalize("permessage-deflate")
    protocol = FrameProtocol(client=True, extensions=[extension] if deflate else [])
    frames = Frames(deflate=deflate)
    first = list(frames.feed(protocol.send_data(message, fin=False) + protocol.ping(b"in between")))
    assert b"" not in first
    *rest, end = frames.feed(protocol.send_data(b"", fin=True))
    assert (b"".join(first + rest), end) == (message, b"")


def test_large_messages_come_in_pieces_before_they_are_complete() -> None:
    data = sent([b"x" * 200_000], client=True, deflate=False)
    assert b"".join(Frames().feed(data[:150_000])).count(b"x") > 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1\x02hi",  # compressed, and nobody agreed to it
        b"\xb1\x00",  # a reserved bit
        b"\x83\x00",  # an opcode that there is none of
        b"\x09\x00",  # a fragmented ping
        b"\x89\x7e\x01\x00",  # a ping that is too long
        b"\x82\x7f" + b"\xff" * 8,  # longer than anything
    ],
)
def test_bytes_that_are_no_frames(data: bytes) -> None:
    with pytest.raises(BadFrames):
        list(Frames().feed(data))


@pytest.mark.parametrize("end", [b"", b"\0"])
@pytest.mark.parametrize("split", range(40))
def test_what_follows_a_final_block_is_read_too(split: int, end: bytes) -> None:
    """RFC 7692 §7.2.3.5; and the next message is read as if nothing had been."""

    def final(text: bytes) -> bytes:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(text) + packer.flush()

    packer = zlib.compressobj(wbits=-15)
    open_block = packer.compress(b"secret") + packer.flush(zlib.Z_SYNC_FLUSH)
    payload = final(b"hello ") + open_block.removesuffix(b"\0\0\xff\xff")
    frames = Frames(deflate=True)
    wire = b"".join(bytes([0xC1, len(body)]) + body for body in (payload, final(b"again") + end, payload))
    assert b"".join([*frames.feed(wire[:split]), *frames.feed(wire[split:])]) == b"hello secretagainhello secret"


def test_a_bomb_is_given_up() -> None:
    data = sent([bytes(64 << 20)], client=False, deflate=True)
    grown: list[int] = []
    with pytest.raises(BadFrames, match="expands"):
        grown.extend(map(len, Frames(deflate=True).feed(data)))
    assert sum(grown) <= FREE_BYTES + RATIO_LIMIT * len(data) < 64 << 20


@given(st.binary(max_size=300))
def test_no_bytes_do_worse_than_bad(data: bytes) -> None:
    plain = Frames()
    for frames in (plain, Frames(deflate=True)):
        got = b""
        with contextlib.suppress(BadFrames):
            for piece in frames.feed(data):
                got += piece
        if frames is plain:
            assert len(got) < max(len(data), 1)  # what is in frames is less than the frames


def test_what_was_agreed_is_read_from_the_answer() -> None:
    for extensions in (
        "",
        "permessage-deflate",
        "permessage-deflate; client_no_context_takeover; server_max_window_bits=10",
    ):
        ours, theirs = pair(extensions)
        data = sent([b"one one one", b"two two two"], client=True, deflate=False)
        assert b"".join(ours.feed(data)) == b"one one onetwo two two"
        assert isinstance(theirs, Frames)


def test_without_context_takeover_each_message_stands_alone() -> None:
    first, second = (sent([text], client=False, deflate=True) for text in (b"one one one", b"two two two"))
    _, theirs = pair("permessage-deflate; server_no_context_takeover")
    assert b"".join(theirs.feed(first[:-4])) == b"one one one"
    assert b"".join(theirs.feed(second[:-4])) == b"two two two"
