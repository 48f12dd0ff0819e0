"""Events as a busy machine's producers report them: 200 programs, 400 users, 3,000 hosts, thirty days.

Of a hundred events 44 are connections, 44 requests, 5 findings, 6 certificates, 1 is a fault. They are made from the
producers' own types, with everything in them that a real connection has: two TLS legs, a chain of parents, hashes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from mitmsec.audit.envelope import Draft, event_id, fields_of
from mitmsec.audit.event import CertificateSeen, ConnectionSeen, FaultSeen, FindingSeen, Outcome, RequestSeen, Seen
from mitmsec.core.messages import TlsClientFacts, TlsFacts, TlsServerFacts
from mitmsec.core.model import (
    Action,
    Confidence,
    Endpoint,
    Finding,
    OnFinding,
    ParentProcess,
    Process,
    Severity,
)
from mitmsec.gate.ids import flow_id

PROGRAMS, USERS, HOSTS = 200, 400, 3000
BEGINS = datetime(2026, 10, 1, tzinfo=UTC)
SPAN = timedelta(days=30)
WORDS = [
    "api",
    "cdn",
    "login",
    "static",
    "mail",
    "shop",
    "files",
    "docs",
    "telemetry",
    "img",
    "auth",
    "push",
    "sync",
    "update",
    "media",
    "data",
    "edge",
    "app",
]
FOLDERS = ("/usr/bin", "/usr/lib/{}", "/opt/{}/bin", "/snap/{}/current/usr/bin", "/usr/local/bin")
ACTIONS = (Action.DECRYPT, Action.BYPASS, Action.BLOCK, Action.CAPTURE)
RULES = ("defaults", "banks stay private", "no trackers", "uploads are inspected", "developers", "updates pass")
DETECTORS = (
    ("secrets", "secret, github-pat", "ghp_… (40 characters)", Severity.HIGH),
    ("secrets", "secret, aws-access-token", "AKIA… (20 characters)", Severity.HIGH),
    ("payment_card", "payment card number", "4… (16 digits)", Severity.MEDIUM),
    ("iban", "bank account number, DE", "DE… (22 characters)", Severity.MEDIUM),
    ("keywords", 'keyword "project nightingale"', "p… (19 characters)", Severity.LOW),
)
SHARES = (44, 44, 5, 6, 1)


class Machine:
    """Programs, users and hosts, drawn once; `drafts` is what happens there. The same `seed`, the same events."""

    def __init__(self, seed: int = 7) -> None:
        self._draw = random.Random(seed)
        self._programs = [self._program(number) for number in range(PROGRAMS)]
        self._hosts = [self._host(number) for number in range(HOSTS)]
        self._users = [f"{self._word()}.{self._word()}{number}" for number in range(USERS)]
        self._policy, self._session = self._hex(32), self._hex(4)

    def drafts(self, count: int) -> Iterator[Draft]:
        """In the order of their times, evenly over SPAN."""
        step = SPAN / max(count, 1)
        kinds = self._draw.choices(range(len(SHARES)), SHARES, k=count)
        before = self.connection(BEGINS)
        for number, kind in enumerate(kinds):
            at = BEGINS + number * step
            if kind == 0:
                before = self.connection(at)
            yield self._draft(at, before, self._of(kind, before))

    def _draft(self, at: datetime, before: ConnectionSeen, seen: Seen) -> Draft:
        kind, fields = fields_of(seen, before.process, before.host)
        number = event_id(seen) if isinstance(seen, ConnectionSeen) else self._hex(8)
        producer = "gate" if isinstance(seen, ConnectionSeen) else "signer" if kind == "certificate" else "worker-1"
        return Draft(kind, number, at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), producer, self._session, fields)

    def _of(self, kind: int, before: ConnectionSeen) -> Seen:
        host = before.host or ""
        match kind:
            case 0:
                return before
            case 1:
                return self._request(before.flow, host)
            case 2:
                return self._finding(before.flow)
            case 3:
                return CertificateSeen(
                    flow=before.flow, serial=self._hex(16), names=(host,), not_after="2026-12-31T00:00:00Z"
                )
            case _:
                return FaultSeen(what="upstream_closed", detail=f"{host} closed while it was asked", flow=before.flow)

    def connection(self, at: datetime) -> ConnectionSeen:
        draw = self._draw
        host, address, certificate = self._hosts[min(int(draw.expovariate(1 / 400)), HOSTS - 1)]
        action = draw.choices(ACTIONS, (70, 24, 3, 3))[0]
        rule = draw.choice(RULES)
        process = self._process(at)
        return ConnectionSeen(
            flow=flow_id(int(at.timestamp() * 1000), draw.randbytes(10)),
            process=process,
            protocol="tls",
            local=Endpoint.of("192.168.1.17", draw.randint(32768, 60999)),
            remote=Endpoint.of(address, 443),
            action=action,
            rule=rule,
            reason="no rule matched; [defaults] decide" if rule == "defaults" else f'rule "{rule}" takes connections',
            bytes_sent=draw.randint(300, 90_000),
            bytes_received=draw.randint(300, 2_000_000),
            duration_ms=draw.randint(1, 60_000),
            outcome=Outcome.BLOCKED if action is Action.BLOCK else Outcome.COMPLETED,
            host=host,
            tls=self._tls(host, certificate),
            policy=self._policy,
        )

    def _tls(self, host: str, certificate: str) -> TlsFacts:
        suite = self._draw.choice(("TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"))
        client = TlsClientFacts(
            version="TLSv1.3",
            cipher=suite,
            group="x25519",
            sni=host,
            alpn="h2",
            offers=("h2", "http/1.1"),
            ja4=self._draw.choice(("t13d3112h2_e8f1e7e78f70_b26ce05bbdd6", "t13d1516h2_8daaf6152771_d8a2da3f94cd")),
        )
        server = TlsServerFacts(
            version="TLSv1.3",
            cipher=suite,
            group="x25519",
            alpn="h2",
            certificate_sha256=certificate,
            verified=True,
        )
        return TlsFacts(client=client, server=server)

    def _request(self, flow: str, host: str) -> RequestSeen:
        draw = self._draw
        path = "/".join(self._word() for _ in range(draw.randint(1, 4)))
        return RequestSeen(
            flow=flow,
            method=draw.choice(("GET", "GET", "GET", "POST", "PUT")),
            url=f"https://{host}/{path}/{draw.randint(1, 10**6)}?page=&q=",
            http_version="HTTP/2",
            status=draw.choice((200, 200, 200, 204, 302, 403, 404, 500)),
            request_bytes=draw.randint(0, 20_000),
            response_bytes=draw.randint(0, 900_000),
            content_type=draw.choice(("application/json", "text/html; charset=utf-8", "image/webp", "text/css")),
        )

    def _finding(self, flow: str) -> FindingSeen:
        detector, summary, evidence, severity = self._draw.choice(DETECTORS)
        place = f"request.body+{self._draw.randint(0, 90_000)}"
        finding = Finding(
            detector=detector,
            severity=severity,
            confidence=0.9,
            summary=summary,
            evidence=evidence,
            location=place,
        )
        return FindingSeen(flow=flow, finding=finding, verdict=self._draw.choice((OnFinding.ALERT, OnFinding.BLOCK)))

    def _process(self, at: datetime) -> Process:
        exe, sha256, parents = self._draw.choice(self._programs)
        parent = None
        for ancestor in reversed(parents):
            parent = ParentProcess(pid=self._draw.randint(900, 90_000), exe=ancestor, parent=parent)
        user = self._draw.randint(0, USERS - 1)
        return Process(
            pid=self._draw.randint(900, 90_000),
            started=(at - timedelta(seconds=self._draw.randint(1, 90_000))).strftime("%Y-%m-%dT%H:%M:%SZ"),
            exe=exe,
            name=exe.rpartition("/")[2],
            sha256=sha256,
            user=self._users[user],
            uid=1000 + user,
            parent=parent,
            confidence=Confidence.KERNEL,
        )

    # -- drawn once ----------------------------------------------------------------------------------------------------
    def _program(self, number: int) -> tuple[str, str, tuple[str, ...]]:
        name = f"{self._word()}-{self._word()}{number}"
        folder = self._draw.choice(FOLDERS).format(name)
        parents = ("/usr/bin/bash", "/usr/lib/systemd/systemd", "/usr/bin/gnome-shell", "/usr/lib/systemd/systemd")
        return f"{folder}/{name}", self._hex(32), parents[: self._draw.randint(1, 4)]

    def _host(self, number: int) -> tuple[str, str, str]:
        draw = self._draw
        address = f"{draw.randint(1, 223)}.{draw.randint(0, 255)}.{draw.randint(0, 255)}.{draw.randint(1, 254)}"
        return f"{self._word()}.{self._word()}{number}.example.com", address, self._hex(32)

    def _word(self) -> str:
        return self._draw.choice(WORDS)

    def _hex(self, count_bytes: int) -> str:
        return self._draw.randbytes(count_bytes).hex()
