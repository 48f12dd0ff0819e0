"""Events as producers make them, for the tests of the audit log."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from mitmsec.audit.envelope import Draft, event_id, fields_of
from mitmsec.audit.event import ConnectionSeen, FindingSeen, FlowHanded, Outcome, RequestSeen, Seen
from mitmsec.audit.following import Following
from mitmsec.audit.merkle import Tree, leaf_hash
from mitmsec.audit.packing import Packing
from mitmsec.audit.store import Store
from mitmsec.core.messages import TlsClientFacts, TlsFacts
from mitmsec.core.model import (
    Action,
    Clear,
    Confidence,
    Endpoint,
    Finding,
    OnFinding,
    ParentProcess,
    Process,
    Severity,
)
from mitmsec.seal import LogSigner

CURL = Process(
    pid=4711,
    started="2026-11-03T10:00:00Z",
    exe="/usr/bin/curl",
    name="curl",
    sha256="ab" * 32,
    user="alice",
    parent=ParentProcess(pid=4000, exe="/usr/bin/bash"),
    confidence=Confidence.KERNEL,
)


def connection(
    flow: str = "flow-1",
    *,
    process: Process = CURL,
    host: str | None = "api.example.com",
    action: Action = Action.DECRYPT,
    outcome: Outcome = Outcome.COMPLETED,
    error: str = "",
) -> ConnectionSeen:
    return ConnectionSeen(
        flow=flow,
        process=process,
        protocol="tls",
        local=Endpoint.of("127.0.0.1", 40000),
        remote=Endpoint.of("192.0.2.7", 443),
        action=action,
        rule="defaults",
        reason="no rule matched",
        bytes_sent=120,
        bytes_received=4500,
        duration_ms=31,
        outcome=outcome,
        host=host,
        error=error,
        tls=TlsFacts(client=TlsClientFacts(sni=host)),
    )


def handed(flow: str = "flow-1", worker: int = 0, keep_evidence_s: int | None = None) -> FlowHanded:
    return FlowHanded(flow=flow, process=CURL, worker=worker, host="api.example.com", keep_evidence_s=keep_evidence_s)


def request(flow: str = "flow-1", url: str = "https://api.example.com/v1/items") -> RequestSeen:
    return RequestSeen(
        flow=flow,
        method="GET",
        url=url,
        http_version="HTTP/2",
        status=200,
        request_bytes=90,
        response_bytes=4000,
        content_type="application/json",
    )


def finding(flow: str = "flow-1", confidence: float = 0.9, clear: bytes = b"") -> FindingSeen:
    return FindingSeen(
        flow=flow,
        finding=Finding(
            detector="keywords",
            severity=Severity.HIGH,
            confidence=confidence,
            summary="a word that must not leave",
            evidence="pro…ion",
            location="request.body+12",
        ),
        verdict=OnFinding.ALERT,
        clear=Clear(value=clear),
    )


def draft(seen: Seen, time: str = "2026-11-03T10:00:00.000000Z", session: str = "run-1") -> Draft:
    """`seen` as the recorder would stamp it."""
    kind, fields = fields_of(seen, CURL, "api.example.com")
    number = event_id(seen) if isinstance(seen, ConnectionSeen) else secrets.token_hex(8)
    return Draft(kind, number, time, "gate", session, fields)


SIGNER = LogSigner("mitmsec.log/test", bytes(range(32)))


def store_in(folder: Path) -> Store:
    """The log there, open, with a key that tests know."""
    return Store(folder, SIGNER)


def forging(path: Path) -> closing[sqlite3.Connection]:
    """The log's file, for whoever can write it: `pack(text)` and `edit(envelope, old, new)` make envelopes."""
    conn, packing = sqlite3.connect(path, isolation_level=None), Packing()
    conn.create_function("pack", 1, lambda text: packing.packed(str(text).encode()))
    conn.create_function(
        "edit", 3, lambda frame, old, new: packing.packed(packing.unpacked(frame).replace(old.encode(), new.encode()))
    )
    return closing(conn)


def rehashed(path: Path) -> None:
    """As whoever can write the file, and has no key, makes it fit again: another tree, and no checkpoint."""
    packing = Packing()
    with forging(path) as conn:
        envelopes = [packing.unpacked(row[0]) for row in conn.execute("SELECT envelope FROM events ORDER BY seq")]
        _, tiles = Tree().grown([leaf_hash(envelope) for envelope in envelopes])
        conn.execute("DELETE FROM tiles")
        conn.execute("DELETE FROM checkpoints")
        conn.executemany(
            "INSERT INTO tiles VALUES (?, ?, ?)", [(tile.level, tile.number, tile.hashes) for tile in tiles]
        )


def appended(folder: Path, drafts: Sequence[Draft]) -> None:
    """To the log there, which is closed again."""
    store = store_in(folder)
    store.append(drafts)
    store.close()


def indexed(folder: Path) -> None:
    """The log there, which nobody has open here, gets its index, as its recorder would make it."""
    Following(folder).close()


def log_of(folder: Path, seen: Sequence[Seen]) -> Path:
    """A closed log in `folder` that holds `seen`, one second apart. Returns the database's path."""
    store = store_in(folder)
    store.append([draft(one, f"2026-11-03T10:00:{index:02d}.000000Z") for index, one in enumerate(seen)])
    store.close()
    return store.path
