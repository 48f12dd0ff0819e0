from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.model import Delivery
from mitmsec.engine.withheld import MASK, TAIL_BYTES, WINDOW_BYTES, Withheld, withheld

PIECES = st.lists(st.binary(max_size=20), max_size=20)


@given(pieces=PIECES, keep_bytes=st.integers(0, 50), is_told=st.booleans())
def test_everything_goes_on_once_and_in_order_and_the_end_last(
    pieces: list[bytes], keep_bytes: int, *, is_told: bool
) -> None:
    whole = b"".join(pieces)
    body = Withheld(keep_bytes, len(whole) if is_told else None)
    gone = b""
    for piece in pieces:
        body.add(piece)
        gone += body.due()
        assert len(body) >= min(keep_bytes, len(gone) + len(body))
        assert not (is_told and whole and gone == whole)  # then the other side would take it for complete
    assert gone + body.rest() == whole


@given(pieces=PIECES, offset=st.integers(0, 100), size_bytes=st.integers(0, 30))
def test_what_is_masked_keeps_its_size_and_what_has_gone_is_not_masked(
    pieces: list[bytes], offset: int, size_bytes: int
) -> None:
    body, gone = Withheld(16), b""
    for piece in pieces:
        body.add(piece)
        gone += body.due()
    whole = b"".join(pieces)
    is_masked = body.mask(offset, size_bytes)
    assert is_masked == (len(gone) <= offset and 0 < size_bytes <= len(whole) - offset)
    if is_masked:
        whole = whole[:offset] + MASK * size_bytes + whole[offset + size_bytes :]
    assert gone + body.rest() == whole


@pytest.mark.parametrize(
    ("delivery", "masks", "keep_bytes"),
    [
        (Delivery.HOLD, False, 0),
        (Delivery.HOLD, True, WINDOW_BYTES),
        (Delivery.WINDOW, False, WINDOW_BYTES),
        (Delivery.TAIL, True, TAIL_BYTES),
    ],
)
def test_how_much_waits(delivery: Delivery, masks: bool, keep_bytes: int) -> None:
    body = withheld(delivery, None, masks=masks)
    body.add(b"x" * (1 << 20))
    assert len(body.due()) == (1 << 20) - keep_bytes


def test_what_nothing_follows_goes_on_unless_it_would_be_complete() -> None:
    open_ended, told = Withheld(10), Withheld(10, 4)
    for body in (open_ended, told):
        body.add(b"abcd")
        assert body.due() == b""
    assert open_ended.idle() == b"abcd"
    assert told.idle() == b""
    assert told.rest() == b"abcd"
