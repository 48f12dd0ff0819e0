"""Ids of flows."""

from __future__ import annotations

from mitmsec.gate.ids import ID_CHARS, flow_id


def test_ids_sort_by_age_and_are_never_the_same() -> None:
    old, new = {flow_id(1_000_000) for _ in range(1000)}, {flow_id(1_000_001) for _ in range(1000)}
    assert len(old) == len(new) == 1000
    assert max(old) < min(new)
    assert max(new) < flow_id()


def test_an_id_is_text_that_can_be_read_aloud() -> None:
    identity = flow_id((1 << 48) - 1)
    assert len(identity) == ID_CHARS
    assert identity.isalnum()
    assert not set(identity) & set("ilouILOU")
