"""Issuers, asked and remembered."""

from __future__ import annotations

import time

import pytest
from badssl_certificates import Certified, root
from badssl_revocation import ocsp_answer, revocation_list
from issuer_stage import Responder, chain_of, naming, responding

from mitmsec.core.origin_proof import Standing, Status
from mitmsec.service import revocation_desk as module
from mitmsec.service.fetching import Unreachable
from mitmsec.service.revocation_desk import AGAIN_S, KEEP_S, SILENT_S, RevocationDesk

pytestmark = pytest.mark.checklist("U7")
CA = root()


class Clock:
    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


def leaf(server: Responder, responder: str | None = None, crl: str | None = None) -> Certified:
    return CA.leaf("www.origin.test", more=server.names(responder=responder, crl=crl))


def one(desk: RevocationDesk, certified: Certified) -> Status:
    (status,) = desk.statuses(chain_of(certified, CA))
    return status


@pytest.mark.parametrize("revoked", [True, False])
def test_a_responder_is_asked_about_it_and_once_a_day(revoked: bool) -> None:
    with responding() as server:
        asked, clock = leaf(server, "/ocsp"), Clock()
        desk = RevocationDesk(clock_s=clock)
        server.answers["/ocsp"] = lambda: ocsp_answer(asked, CA, revoked=revoked, ends_days=7)
        expected = Standing.REVOKED if revoked else Standing.GOOD
        assert [one(desk, asked).standing for _ in range(3)] == [expected] * 3
        assert [question.serial_number for question in server.questions] == [asked.certificate.serial_number]
        clock.ahead_s = KEEP_S + 1
        one(desk, asked)
        assert len(server.asked) == 2


def test_a_list_serves_all_whom_it_is_about() -> None:
    with responding() as server:
        good, bad = leaf(server, crl="/crl"), leaf(server, crl="/crl")
        server.answers["/crl"] = lambda: revocation_list(CA, bad)
        desk = RevocationDesk()
        assert (one(desk, good).standing, one(desk, bad).standing) == (Standing.GOOD, Standing.REVOKED)
        assert server.asked == ["/crl"]


def test_a_responder_that_is_down_leaves_the_list() -> None:
    with responding() as server:
        asked = leaf(server, "/ocsp", "/crl")
        server.answers = {"/ocsp": 503, "/crl": lambda: revocation_list(CA, asked)}
        assert one(RevocationDesk(), asked) == Status(
            standing=Standing.REVOKED, text="CRL", until_s=one(RevocationDesk(), asked).until_s
        )


def test_where_all_are_down_that_is_said_and_they_are_asked_again_in_a_minute() -> None:
    with responding() as server:
        asked, clock = leaf(server, "/ocsp", "/crl"), Clock()
        desk = RevocationDesk(clock_s=clock)
        status = one(desk, asked)
        assert status.standing is Standing.UNKNOWN
        assert status.text == f"the OCSP responder {server.url('/ocsp')}: HTTP status 404"
        one(desk, asked)
        assert server.asked == ["/ocsp", "/crl"]
        clock.ahead_s = AGAIN_S + 1
        server.answers["/ocsp"] = lambda: ocsp_answer(asked, CA)
        assert one(desk, asked).standing is Standing.GOOD


def test_a_host_where_nobody_answers_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOSTS_LIMIT", 1)
    tried: list[str] = []

    def silence(url: str, **_: object) -> bytes:
        tried.append(url)
        raise Unreachable("no answer in time")

    clock = Clock()
    desk = RevocationDesk(fetch=silence, clock_s=clock)
    first, second, other = (
        CA.leaf("www.origin.test", more=naming(url)) for url in ("http://a.test/1", "http://a.test/2", "http://b.test/")
    )
    assert "no answer in time" in one(desk, first).text
    assert "nobody answered there lately" in one(desk, second).text
    assert tried == ["http://a.test/1"]
    clock.ahead_s = SILENT_S + 1
    one(desk, second)
    one(desk, other)
    assert tried == ["http://a.test/1", "http://a.test/2", "http://b.test/"]
    assert len(desk._silent) == 1


def test_a_list_that_is_worth_nothing_is_not_kept() -> None:
    with responding() as server:
        asked, other = leaf(server, crl="/crl"), leaf(server, crl="/crl")
        server.answers["/crl"] = lambda: revocation_list(CA, signer=root("a stranger"))
        desk = RevocationDesk()
        assert "not signed" in one(desk, asked).text
        server.answers["/crl"] = lambda: revocation_list(CA)
        assert one(desk, other).standing is Standing.GOOD


def test_who_names_nobody_is_not_asked_about() -> None:
    assert one(RevocationDesk(), CA.leaf("www.origin.test")) == Status(standing=Standing.UNASKED)


def test_every_certificate_of_a_chain_has_its_answer() -> None:
    with responding() as server:
        ca = CA.intermediate(more=server.names(crl="/crl"))
        server.answers["/crl"] = lambda: revocation_list(CA, ca)
        statuses = RevocationDesk().statuses(chain_of(ca.leaf("www.origin.test"), ca, CA))
        assert [status.standing for status in statuses] == [Standing.UNASKED, Standing.REVOKED]


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with responding() as server:
        crl = revocation_list(CA)
        monkeypatch.setattr(module, "LISTS_LIMIT_BYTES", len(crl))
        monkeypatch.setattr(module, "STATUSES_LIMIT", 1)
        first, second = leaf(server, crl="/1"), leaf(server, crl="/2")
        server.answers = {"/1": lambda: crl, "/2": lambda: crl}
        desk = RevocationDesk()
        for asked in (first, second, second, first):
            assert one(desk, asked).standing is Standing.GOOD
        assert server.asked == ["/1", "/2", "/1"]
