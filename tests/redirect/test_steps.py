"""The constants of the steps against the layouts that they stand for."""

from __future__ import annotations

from mitmsec_redirect import records, steps


def test_the_stack_slots_do_not_overlap() -> None:
    slots = sorted(
        (
            (steps.ATTEMPT, records.ATTEMPT.size),
            (steps.KEY, records.COOKIE.size),
            (steps.BEAT, records.HEARTBEAT.size),
            (steps.ROUTE_KEY, records.ROUTE_KEY.size),
        )
    )
    ends = [start + size for start, size in slots]
    assert all(end <= start for end, (start, _) in zip(ends, [*slots[1:], (0, 0)], strict=True))
    assert slots[0][0] >= -512
    assert all(start % 8 == 0 for start, _ in slots)


def test_addresses_are_words_in_network_order() -> None:
    assert steps.LOOPBACK_V4.to_bytes(4, "little") == bytes((127, 0, 0, 1))
    assert steps.PORT_443.to_bytes(2, "little") == b"\x01\xbb"
