"""Events of every kind for the tests of exports: as they are recorded, and with anything at all in any place."""

from __future__ import annotations

from typing import Any

import msgspec
from audit_events import CURL, connection, draft, finding, request
from hypothesis import strategies as st
from msgspec.structs import replace

from mitmsec.audit.envelope import Fields, sealed
from mitmsec.audit.event import (
    CaSeen,
    CertificateSeen,
    ConnectionSeen,
    FaultSeen,
    Outcome,
    PolicySeen,
    ReviewSeen,
    Seen,
    ServiceSeen,
)
from mitmsec.audit.export.reading import Source
from mitmsec.core.messages import TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import Action, Direction, Endpoint, Finding, OnFinding, ParentProcess, Severity

HERE = Source(host="desk-7", version="1.2", log="mitmsec.log/0123456789abcdef")

TLS = TlsFacts(
    client=TlsClientFacts(version="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256", sni="a.example", alpn="h2", ja4="t13d"),
    server=TlsServerFacts(
        version="TLSv1.2", cipher="ECDHE", certificate_sha256="cd" * 32, verified=True, resumed=False
    ),
)
GRANDCHILD = replace(CURL, uid=1000, parent=ParentProcess(pid=5, exe="/bin/sh", parent=ParentProcess(pid=1)))
INBOUND = replace(connection(), direction=Direction.INBOUND, local=Endpoint.of("::1", 22), remote=Endpoint.of("::2", 9))
DATAGRAMS: ConnectionSeen = replace(
    connection(), protocol="udp", bytes_sent=None, bytes_received=None, datagrams_sent=3, datagrams_received=4, tls=None
)
MALWARE = Finding(
    detector="malware", severity=Severity.MEDIUM, confidence=1.0, summary="Eicar", evidence="", location="response.body"
)
CA = CaSeen(operation="created", subject="CN=root", sha256="ab" * 32, not_after="2036-01-01T00:00:00Z")
SEEN: list[Seen] = [
    connection(),
    replace(connection(process=GRANDCHILD, error="late"), tls=TLS, policy="ee" * 32, named_by=None),
    connection(action=Action.BLOCK, outcome=Outcome.BLOCKED),
    connection(action=Action.CAPTURE, outcome=Outcome.OPEN, host=None),
    INBOUND,
    DATAGRAMS,
    request(),
    replace(request(url="not a url"), method="PROPFIND", status=None, content_type=None, outcome=Outcome.BLOCKED),
    request(url="https://[::1]:8443/a?b=#c"),
    finding(),
    replace(finding(), finding=MALWARE, verdict=OnFinding.QUARANTINE, item="item-1"),
    replace(finding(), finding=replace(MALWARE, detector="yara", location=""), verdict=OnFinding.REDACT),
    CertificateSeen(flow="flow-1", serial="0a", names=("a.example", "b.example"), not_after="2027-01-01T00:00:00Z"),
    CA,
    replace(CA, operation="issuing_rotated", user="root", detail="why"),
    PolicySeen(session="s", path="/etc/p.toml", sha256="aa", policy="bb", rules=3, on_failure="open"),
    ReviewSeen(operation="quarantine_released", item="item-1", user="root", people=("a", "b"), keys=("k", "l")),
    ServiceSeen(operation="run_started", command=("curl",), user="alice", status=0),
    ServiceSeen(operation="switched_off", user="root", detail="by hand"),
    ServiceSeen(operation="quarantined", detail="item-1"),
    FaultSeen(what="stranger", detail="127.0.0.1:9", failed="closed", pid=7, count=2),
]
REAL: list[Fields] = [msgspec.json.decode(sealed(draft(seen), number)[1]) for number, seen in enumerate(SEEN)]
LATER = {"id": "x", "kind": "of a later version", "seq": 99, "time": "2026-11-03T10:00:00.000000Z", "new": [1]}

HOSTILE = st.sampled_from(
    [
        "=cmd|' /C calc'!A0", "\t=1+1", "+1", "@SUM(1)", "-2", " =1", "＝1", "a|b\\c=d", "a\nCEF:0|x|y", "-",
        "x" * 3000, "\r\n<13>1 - -",
        '"]x', "a\x00b", "\x1b[2J", "\u202egpj.exe", "\u2028", "\x85", "\ufeff", "=", "\\", "٣",
        'a,b\r\n"c"', "https://[::1", "http://h:99999/", "http://a\u2100b/", "2026-02-30", "256.1.1.1",
        "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "::ffff:1.2.3.4", "fe80::1%eth0",
    ]
)  # fmt: skip
TEXT = HOSTILE | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ANYTHING = (
    TEXT
    | st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.lists(TEXT, max_size=3)
    | st.dictionaries(
        st.sampled_from(["pid", "exe", "a", "client", "parent", "sent"]), TEXT | st.integers(0, 9), max_size=3
    )
)


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every place in an event, tables and lists too."""
    inner = value.items() if isinstance(value, dict) else ()
    return [found for key, one in inner for found in [(*path, key), *leaves(one, (*path, key))]]


def put(event: Fields, path: tuple[str, ...], value: Any) -> Fields:
    """`event` with `value` at `path`, where that is still a place."""
    key, *rest = path
    if not rest:
        return {**event, key: value}
    inner = event.get(key)
    return {**event, key: put(inner, tuple(rest), value)} if isinstance(inner, dict) else event


@st.composite
def events(draw: st.DrawFn, values: st.SearchStrategy[Any] = ANYTHING) -> Fields:
    """An event as it is recorded, with `values` in some places."""
    event = draw(st.sampled_from(REAL))
    places = draw(st.lists(st.sampled_from(leaves(event)), max_size=6))
    for path in places:
        event = put(event, path, draw(values))
    return event
