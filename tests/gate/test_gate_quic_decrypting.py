"""Which flows of QUIC can be decrypted, and what is remembered of those that could not be."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from mitmsec.audit.event import Outcome
from mitmsec.core.clienthello import ClientHello
from mitmsec.core.messages import FlowEnded, TlsFacts, TlsServerFacts
from mitmsec.core.model import Action, Decision, Learning
from mitmsec.gate.learned import Kind, Learned
from mitmsec.gate.quic_decrypting import HELLO_LIMIT_BYTES, REFUSED_LIMIT, REFUSED_S, Decrypting

HELLO = ClientHello(
    sni="origin.test", alpn=("h3",), versions=(0x0304,), ciphers=(0x1301,), groups=(29,), signatures=(0x0403,),
    ja4="q13d", ech=False, raw=b"\x01",
)  # fmt: skip
DECISION = Decision(action=Action.DECRYPT, rule="r", reason="")
KIND = Kind("/usr/bin/curl", False, "", "0", "origin.test", 443)
REJECTED = FlowEnded(flow="f", bytes_sent=0, bytes_received=0, outcome="client_rejected")


class Health:
    def __init__(self, *, off: bool = False, recording: bool = True, signing: bool = True) -> None:
        self.off, self.recording, self.signing = off, recording, signing


def decrypting(**health: bool) -> Decrypting:
    return Decrypting(Health(**health), Learned())


def test_a_hello_of_http3_that_names_a_host_can_be() -> None:
    assert decrypting().obstacle(HELLO, DECISION, KIND, 0.0) == ""
    assert decrypting().obstacle(HELLO, DECISION, None, 0.0) == ""
    assert not decrypting().off
    assert decrypting(off=True).off


@pytest.mark.parametrize(
    ("hello", "decision", "health", "why"),
    [
        (None, DECISION, {}, "names no host"),
        (replace(HELLO, sni=None), DECISION, {}, "names no host"),
        (replace(HELLO, alpn=("hq-interop",)), DECISION, {}, "no HTTP/3"),
        (replace(HELLO, raw=bytes(HELLO_LIMIT_BYTES + 1)), DECISION, {}, "too long"),
        (HELLO, replace(DECISION, identity="us"), {}, "no client's certificate"),
        (HELLO, DECISION, {"recording": False}, "on record"),
        (HELLO, DECISION, {"signing": False}, "make a certificate"),
    ],
)
def test_anything_else_cannot(hello: ClientHello | None, decision: Decision, health: dict[str, bool], why: str) -> None:
    assert why in decrypting(**health).obstacle(hello, decision, KIND, 0.0)


def test_what_was_refused_once_is_refused_for_a_while_for_that_program_and_host() -> None:
    one = decrypting()
    one.ended(KIND, REJECTED, Outcome.CLIENT_REJECTED, 10.0)
    assert "the last time it failed: client_rejected" in one.obstacle(HELLO, DECISION, KIND, 11.0)
    assert one.obstacle(HELLO, DECISION, KIND._replace(host="other.test"), 11.0) == ""
    assert one.obstacle(HELLO, DECISION, KIND._replace(program="/usr/bin/wget"), 11.0) == ""
    assert one.obstacle(HELLO, DECISION, KIND, 10.0 + REFUSED_S) == ""
    one.forget()
    assert one.obstacle(HELLO, DECISION, KIND, 11.0) == ""


def test_ends_that_say_nothing_about_the_next_are_not_remembered() -> None:
    one = decrypting()
    one.ended(None, REJECTED, Outcome.CLIENT_REJECTED, 10.0)
    one.ended(KIND, replace(REJECTED, was_heard=True), Outcome.ORIGIN_RESET, 10.0)
    one.ended(KIND, REJECTED, Outcome.COMPLETED, 10.0)
    assert one.obstacle(HELLO, DECISION, KIND, 11.0) == ""


def test_what_was_learned_over_tcp_holds_here_too() -> None:
    learned = Learned()
    asks = replace(REJECTED, tls=TlsFacts(server=TlsServerFacts(asks_certificate=True)))
    assert learned.heard(KIND, asks, Learning(on_request=True), 0.0) is not None
    one = Decrypting(Health(), learned)
    assert "learned not to work" in one.obstacle(HELLO, DECISION, KIND, 1.0)


def test_the_memory_is_bounded() -> None:
    one = decrypting()
    for number in range(REFUSED_LIMIT + 1):
        one.ended(KIND._replace(host=f"h{number}.test"), REJECTED, Outcome.ORIGIN_CERTIFICATE, 1.0)
    assert one.obstacle(HELLO, DECISION, KIND._replace(host="h0.test"), 2.0) == ""
    assert one.obstacle(HELLO, DECISION, KIND._replace(host="h1.test"), 2.0) != ""
