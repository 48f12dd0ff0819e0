"""Sessions with origins: resumed for the program that began them, and for nobody else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import trustme
from engine_world import NAME, Pages, connected, curl, origin, server_context, trusting, world
from test_engine_openssl import Pair, server

from mitmsec.core.messages import HandOver, Plaintext
from mitmsec.core.model import Action, Decision, Endpoint, Revocation, TlsVersion, Transparency, Upstream, UpstreamTrust
from mitmsec.engine import resumption
from mitmsec.engine.contexts import OriginContext
from mitmsec.engine.openssl import TlsSession
from mitmsec.engine.resumption import Place, Resumptions

ORIGIN = Endpoint(address="127.0.0.1", port=443)
PLACE = Place("41 2026-11-23T12:00:00Z root /usr/bin/curl", "a.test", ORIGIN, True)
FOREVER_S = 1 << 40


class Program:
    """Connects to a server of its own again and again."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.server = server(self.ca, "a.test")
        self.origins = OriginContext(self.ca.cert_pem.bytes())
        self.kept = Resumptions()

    def connects(
        self, place: Place = PLACE, *, now_s: float = 1000.0, not_after_s: int = FOREVER_S, tls12: bool = False
    ) -> TlsSession:
        """One whole connection."""
        session = self.origins.session("a.test", sni=True, alpn=(), tls12=True)
        begun = self.kept.begin(place, session, now_s)
        if tls12:
            self.server.maximum_version = self.server.maximum_version.TLSv1_2
        made = Pair(session, self.server)
        assert session.verify_errors == []
        begun.verified(session, not_after_s, now_s)
        made.server.write(b"answer")
        session.feed(made.out.read())
        assert session.read() == b"answer"
        begun.keep(session, now_s)
        session.close_notify()  # one that is freed without has OpenSSL forget its session, whenever that may be
        return session


def test_the_next_connection_of_a_program_resumes_and_shows_the_same_certificate() -> None:
    program = Program()
    first, second, third = (program.connects() for _ in range(3))
    assert [session.resumed for session in (first, second, third)] == [False, True, True]
    assert first.peer_certificate() == second.peer_certificate() == third.peer_certificate() is not None


@pytest.mark.checklist("U31")
@pytest.mark.parametrize(
    "other",
    [
        PLACE._replace(owner="42 2026-11-23T12:00:00Z root /usr/bin/curl"),
        PLACE._replace(name="b.test"),
        PLACE._replace(origin=Endpoint(address="127.0.0.1", port=8443)),
        PLACE._replace(sni=False),
    ],
)
def test_nobody_else_resumes_it(other: Place) -> None:
    program = Program()
    program.connects()
    assert not program.connects(other).resumed
    assert program.connects().resumed


@pytest.mark.checklist("U31")
def test_a_process_that_is_not_known_resumes_nothing() -> None:
    program = Program()
    nobody = PLACE._replace(owner="")
    assert not any(program.connects(nobody).resumed for _ in range(2))
    assert len(program.kept) == 0


def test_a_ticket_serves_once() -> None:
    program = Program()
    program.connects()
    sessions = [program.origins.session("a.test", sni=True, alpn=(), tls12=True) for _ in range(2)]
    for session in sessions:
        program.kept.begin(PLACE, session, 1000.0)
    assert [Pair(session, program.server).session.resumed for session in sessions] == [True, False]


def test_a_full_handshake_is_due_after_a_while_whatever_was_resumed_meanwhile() -> None:
    program = Program()
    program.connects(now_s=0.0)
    assert program.connects(now_s=resumption.KEEP_S - 1).resumed
    assert not program.connects(now_s=resumption.KEEP_S).resumed


def test_a_session_ends_with_the_certificate_it_was_verified_by() -> None:
    program = Program()
    program.connects(now_s=0.0, not_after_s=10)
    assert program.connects(now_s=9.0, not_after_s=10).resumed
    assert not program.connects(now_s=10.0, not_after_s=10).resumed


def test_tls_1_2_is_not_resumed() -> None:
    program = Program()
    assert not any(program.connects(tls12=True).resumed for _ in range(2))


def test_what_was_not_verified_is_not_kept() -> None:
    program = Program()
    session = program.origins.session("a.test", sni=True, alpn=(), tls12=True)
    begun = program.kept.begin(PLACE, session, 1000.0)
    made = Pair(session, program.server)
    made.server.write(b"answer")
    session.feed(made.out.read())
    session.read()
    begun.keep(session, 1000.0)
    assert len(program.kept) == 0


def test_a_session_that_weighs_too_much_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """An origin sends as long a chain as it likes, and the session holds it."""
    monkeypatch.setattr(resumption, "SIZE_LIMIT_BYTES", 100)
    program = Program()
    program.connects()
    assert len(program.kept) == 0


def test_what_is_kept_is_bounded() -> None:
    program = Program()
    program.connects()
    session = program.origins.session("a.test", sni=True, alpn=(), tls12=True)
    program.kept.begin(PLACE, session, 1000.0)
    Pair(session, program.server)
    session.expect_ticket()
    kept = session._connection.get_session()  # any session will do
    assert kept is not None
    until_s = time.time()
    for number in range(resumption.PLACES_LIMIT + 5):
        program.kept.keep(PLACE._replace(owner=str(number)), kept, until_s)
    for _ in range(resumption.EACH_LIMIT + 5):
        program.kept.keep(PLACE, kept, until_s)
    assert len(program.kept) == resumption.PLACES_LIMIT - 1 + resumption.EACH_LIMIT


@pytest.mark.checklist("U31")
def test_a_flow_resumes_what_an_earlier_one_of_its_program_began_and_says_so(tmp_path: Path) -> None:
    """And the certificate that is on record is still the one that was verified."""

    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            ends = []
            for owner in ("one", "one", "another", ""):
                made.owner = owner
                status, _, _ = await curl(made, tmp_path)
                assert status == 0
                ends.append(await made.end())
        servers = [end.tls.server for end in ends if end.tls is not None and end.tls.server is not None]
        assert [server.resumed for server in servers] == [None, True, None, None]
        assert {server.verified for server in servers} == {True}
        assert len({server.certificate_sha256 for server in servers} - {None}) == 1

    asyncio.run(main())


def test_a_certificate_with_a_flaw_is_looked_at_each_time(tmp_path: Path) -> None:
    async def main() -> None:
        ca, unknown = trustme.CA(), trustme.CA()
        async with (
            origin(Pages(), server_context(unknown)) as port,
            world(tmp_path, port, [ca], upstream=Upstream.ACCEPT) as made,
        ):
            made.owner = "one"
            for _ in range(2):
                await curl(made, tmp_path)
                end = await made.end()
                assert end.tls is not None
                assert end.tls.server is not None
                assert (end.tls.server.resumed, end.tls.server.verified) == (None, False)
            assert len(made.engine.resumptions) == 0

    asyncio.run(main())


def test_a_session_is_taken_up_only_under_a_rule_that_asks_the_same() -> None:
    def place(**said: object) -> Place:
        decision = Decision(action=Action.DECRYPT, rule="r", reason="", **said)  # type: ignore[arg-type]
        order = HandOver(
            flow="f", kind=Plaintext.TLS, name="a.test", origin=ORIGIN, client=ORIGIN, decision=decision, owner="o"
        )
        return Place.of(order, sni=True)

    asked = [
        {},
        {"trust": UpstreamTrust.PUBLIC},
        {"revocation": Revocation.HARD},
        {"sct": Transparency.OFF},
        {"min_tls": TlsVersion.TLS13},
    ]
    assert len({place(**said) for said in asked}) == len(asked)
    assert place(identity="me").identity == "me"


def test_a_program_that_connects_again_before_its_last_connection_has_ended_resumes_it_already(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with origin(Pages(), server_context(ca)) as port, world(tmp_path, port, [ca]) as made:
            made.owner = "one"
            trusts = trusting(tmp_path)
            reader, writer = await connected(made, trusts)
            writer.write(b"GET / HTTP/1.1\r\nhost: %b\r\n\r\n" % NAME.encode())
            await reader.readuntil(b"you asked for /")
            status, _, _ = await curl(made, tmp_path)
            second = await made.end()
            writer.close()
            assert status == 0
            assert second.tls is not None
            assert second.tls.server is not None
            assert second.tls.server.resumed

    asyncio.run(main())


# --- key shares -------------------------------------------------------------------------------------------------------
def test_an_origin_that_took_no_hybrid_group_is_known_for_as_long_as_its_sessions_are_good() -> None:
    program = Program()
    assert not program.kept.is_classical(PLACE, 0.0)
    for is_hybrid in (True, False):
        session = program.origins.session("a.test", sni=True, alpn=(), tls12=True)
        Pair(session, program.server)
        session.expect_ticket()
        kept = session._connection.get_session()
        assert kept is not None
        program.kept.keep(PLACE, kept, 10.0, is_hybrid=is_hybrid)
        assert program.kept.is_classical(PLACE, 9.0) is not is_hybrid
    assert not program.kept.is_classical(PLACE, 10.0)
    assert not program.kept.is_classical(PLACE._replace(owner="another"), 9.0)
