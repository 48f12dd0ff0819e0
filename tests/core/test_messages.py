"""Messages between processes survive the wire, and each kind is told apart by its name."""

from __future__ import annotations

import msgspec
import pytest

from mitmsec.audit.event import PERMITTED, ConnectionSeen, FlowHanded, RequestSeen
from mitmsec.channel import decoder
from mitmsec.core.messages import HandOver, Message, MintAnswer, MintQuestion, Plaintext, Role, encode
from mitmsec.core.model import Action, Decision, Endpoint, Process

ENDPOINT = Endpoint.of("2001:db8::1", 443)
EXAMPLES: list[Message] = [
    HandOver(
        flow="f",
        kind=Plaintext.TLS,
        name="example.com",
        origin=ENDPOINT,
        client=Endpoint.of("127.0.0.1", 50000),
        decision=Decision(action=Action.DECRYPT, rule="defaults", reason="", inspect=("keywords",)),
    ),
    MintQuestion(number=1, flow="f", not_after_s=None),
    MintAnswer(number=1, chain=(b"\x00\xff",), key=b"\xfe\x00"),
    FlowHanded(flow="f", process=Process(pid=1), worker=0, host="example.com"),
]


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    assert decoder([type(message) for message in EXAMPLES])(encode(message)) == message


@pytest.mark.parametrize("role", list(Role))
def test_no_producer_may_say_what_is_another_ones(role: Role) -> None:
    allowed = set(PERMITTED[role])
    assert (RequestSeen in allowed) == (role is Role.WORKER)
    assert (FlowHanded in allowed) == (role is Role.GATE)
    assert (ConnectionSeen in allowed) == (role in (Role.GATE, Role.SUPERVISOR))


def test_unknown_fields_are_refused() -> None:
    packet = msgspec.msgpack.encode({"type": "Drained", "cut": 1, "more": 2})
    from mitmsec.core.messages import Drained

    with pytest.raises(msgspec.ValidationError):
        decoder([Drained])(packet)
