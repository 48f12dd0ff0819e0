"""What hooks become, where a whole flow would not show it."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from engine_world import DECISION, Recorder
from mitmproxy.connection import Client, Server
from mitmproxy.proxy.layers import tcp
from mitmproxy.proxy.layers.tls import TlsEstablishedClientHook
from mitmproxy.tcp import TCPFlow, TCPMessage

from mitmsec.audit.event import Outcome
from mitmsec.core.messages import HandOver, Plaintext
from mitmsec.core.model import Endpoint, OnFailure
from mitmsec.engine.hooks import Hooks
from mitmsec.engine.pauses import Pauses
from mitmsec.engine.watch import Blocked, Watch

HAND_OVER = HandOver(
    flow="flow-1",
    kind=Plaintext.HTTP,
    name="a.test",
    origin=Endpoint(address="192.0.2.1", port=80),
    client=Endpoint(address="192.0.2.2", port=1),
    decision=DECISION,
)

NONE = Pauses(cast("asyncio.AbstractEventLoop", None), lambda answer: None, lambda error: None)


def hooks() -> tuple[Hooks, Recorder]:
    async def make() -> Recorder:
        return Recorder()

    recorder = asyncio.run(make())
    return Hooks(HAND_OVER, Watch("flow-1", DECISION, {}, OnFailure.OPEN, recorder), recorder, NONE), recorder


def message(content: bytes, *, sent: bool) -> tcp.TcpMessageHook:
    flow = TCPFlow(Client(peername=("", 0), sockname=("", 0)), Server(address=None), True)
    flow.messages.append(TCPMessage(sent, content))  # type: ignore[no-untyped-call]
    return tcp.TcpMessageHook(flow)


def test_messages_are_not_kept() -> None:
    made, _ = hooks()
    hook = message(b"data", sent=True)
    made.answer(hook)
    assert hook.flow.messages == []


def test_a_late_request_is_noticed_however_it_is_split() -> None:
    made, recorder = hooks()
    made.unfinished = b""
    for piece in (b"GE", b"T / HT"):
        made.answer(message(piece, sent=True))
    made.answer(message(b"what the origin says does not matter\n", sent=False))
    with pytest.raises(Blocked):
        made.answer(message(b"TP/1.1\r\n", sent=True))
    assert [fault.what for fault in recorder.faults] == ["late_http"]


def test_a_line_that_is_none_is_forgotten() -> None:
    made, recorder = hooks()
    made.unfinished = b""
    made.answer(message(b"HELLO there\r\nGET / HTTP/1.1\r\n", sent=True))
    assert recorder.faults == []
    made.answer(message(b"GET / HTTP/1.1\r\n", sent=True))
    assert recorder.faults == []


def test_exchanges_that_are_open_at_the_end_are_recorded_then() -> None:
    made, recorder = hooks()
    exchange = made.new_exchange()
    exchange.begin(b"GET", b"/", "HTTP/1.1", [b"a.test"], (), has_body=False)
    assert made.busy
    made.end()
    assert [seen.status for seen in recorder.requests] == [None]
    assert not hooks()[0].busy


def test_a_refused_exchange_is_not_open_any_more() -> None:
    made, _ = hooks()
    exchange = made.new_exchange()
    exchange.begin(b"GET", b"/", "HTTP/1.1", [b"b.test"], (), has_body=False)
    exchange.finish()
    assert not made.busy


def test_the_first_thing_that_went_wrong_is_what_is_noted() -> None:
    made, _ = hooks()
    made.broken()
    first = made.noted
    made.broken()
    assert made.noted is first
    assert first is not None
    assert first.outcome == Outcome.MALFORMED


def test_other_hooks_are_passed_over() -> None:
    made, recorder = hooks()
    made.answer(TlsEstablishedClientHook(None))  # type: ignore[arg-type]
    assert recorder.seen == []
