"""What mitmproxy's layer does with a command, ours does as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.connection import Server
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpLayer,
    HTTPMode,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestEndOfMessage, RequestHeaders, ResponseEndOfMessage
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.proxy.layers.quic import SendQuicStreamData

from mitmsec.core.model import Endpoint
from mitmsec.engine.embedded import Embedded
from mitmsec.engine.pauses import Breath, Whole
from mitmsec.engine.routed import Routed

SERVER = Server(address=("192.0.2.1", 443))
WHERE = Endpoint(address="192.0.2.1", port=443)
FLOW = http.HTTPFlow(SERVER, SERVER)  # type: ignore[arg-type]
ASKED = http.Request.make("GET", "https://www.origin.test/")


class Puppet(Layer):
    """Says one thing when it is first told something, and notes what it is told."""

    def __init__(self, name: str, says: commands.Command | None = None) -> None:
        self.name, self.says, self.told = name, says, []  # type: list[events.Event]

    def __repr__(self) -> str:
        return self.name

    def handle_event(self, event: events.Event) -> CommandGenerator[None]:
        self.told.append(event)
        says, self.says = self.says, None
        if says is not None:
            yield says

    _handle_event = handle_event


def routed(kind: type[HttpLayer], says: commands.Command, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All that comes of `says`, said by a child of a layer of that kind: what leaves the layer, and what it keeps."""
    called: list[tuple[str, object]] = []

    def noted(name: str) -> Callable[..., CommandGenerator[None]]:
        def method(self: HttpLayer, subject: object) -> CommandGenerator[None]:
            called.append((name, subject))
            yield commands.Log(name)

        return method

    for name in ("make_stream", "get_connection", "register_connection"):
        monkeypatch.setattr(kind, name, noted(name))
    layer = kind(Embedded().context("flow", WHERE, WHERE, 0.0), HTTPMode.transparent)
    stream, back, child = Puppet("stream", commands.SendData(SERVER, b"by it")), Puppet("back"), Puppet("child", says)
    layer.streams[1], layer.connections[SERVER] = stream, back  # type: ignore[assignment]
    left = list(layer.event_to_child(child, events.Start()))
    kept = ({**layer.command_sources}, [*layer.streams], {**layer.connections})
    return [[(type(one), vars(one)) for one in left], called, repr(kept), stream.told, back.told]


@pytest.mark.parametrize(
    "says",
    [
        commands.SendData(SERVER, b"bytes"),
        commands.Log("a word"),
        commands.RequestWakeup(1.0),
        commands.OpenConnection(SERVER),
        commands.CloseConnection(SERVER),
        commands.CloseTcpConnection(SERVER, half_close=True),
        HttpRequestHook(FLOW),
        Breath(),
        Whole(),
        SendQuicStreamData(SERVER, 1, b"bytes"),
        ReceiveHttp(RequestHeaders(1, ASKED, end_stream=True)),
        ReceiveHttp(RequestEndOfMessage(1)),
        ReceiveHttp(RequestEndOfMessage(3)),  # of an exchange that is over
        SendHttp(ResponseEndOfMessage(1), SERVER),
        DropStream(1),
        DropStream(3),
        GetHttpConnection(("192.0.2.1", 443), True, None, "tcp"),
        RegisterHttpConnection(SERVER, "a reason"),
    ],
    ids=lambda says: type(says).__name__,
)
def test_a_command_is_led_as_mitmproxy_leads_it(says: commands.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        theirs = routed(HttpLayer, says, patched)
    with monkeypatch.context() as patched:
        ours = routed(Routed, says, patched)
    assert ours == theirs
