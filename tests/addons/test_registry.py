from __future__ import annotations

import pytest

from mitmsec.config import KNOWN_INSPECTORS
from mitmsec.core.inspection import Inspector, Part, PartKind
from mitmsec_addons.registry import KNOWN, PREPARED, build


def test_every_known_inspector_is_built_under_its_name(prepared_secrets: bytes) -> None:
    for name in KNOWN:
        prepared = prepared_secrets if name in PREPARED else None
        inspector: Inspector = build(name, ("falcon",) if name == "keywords" else (), prepared)
        assert inspector.name == name
        assert inspector.open(Part(flow="f", kind=PartKind.URL, sent=True, host="h")) is not None


def test_a_policy_may_name_all_of_them() -> None:
    assert set(KNOWN_INSPECTORS) == KNOWN


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match='no inspector "keyword"; known: doh, iban, keywords, national_id, payment_card, secrets'
    ):
        build("keyword", ("falcon",))
