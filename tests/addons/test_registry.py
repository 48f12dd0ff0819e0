from __future__ import annotations

import pytest

from mitmsec.config import KNOWN_INSPECTORS
from mitmsec.core.inspection import AnyInspector, AwaitedInspector, Part, PartKind
from mitmsec_addons.registry import KNOWN, PREPARED, build

WORDS = {"keywords": ("falcon",), "malware": ("/run/clamav/clamd.ctl",), "icap": ("icap://127.0.0.1:1344/x",)}


def test_every_known_inspector_is_built_under_its_name(prepared_secrets: bytes) -> None:
    for name in KNOWN:
        words = {
            "keywords": ("falcon",),
            "malware": ("/run/clamav/clamd.ctl",),
            "icap": ("icap://127.0.0.1:1344/x",),
            "yara": ("own.yar",),
        }.get(name, ())
        inspector: AnyInspector = build(name, words, prepared_secrets if name in PREPARED else None)
        assert inspector.name == name
        kinds = [PartKind.URL, PartKind.BODY]
        begin = inspector.begin if isinstance(inspector, AwaitedInspector) else inspector.open
        assert any(begin(Part(flow="f", kind=kind, sent=True, host="h")) for kind in kinds)


def test_a_policy_may_name_all_of_them() -> None:
    assert set(KNOWN_INSPECTORS) == KNOWN


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match='no inspector "keyword"; known: archives, documents, doh, file_type, iban, icap',
    ):
        build("keyword", ("falcon",))
