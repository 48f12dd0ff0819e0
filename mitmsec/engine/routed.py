"""mitmproxy's way from layer to layer, sooner.

    client ── DataReceived ──► Front ── ReceiveHttp ──► stream ── SendHttp ──► Back ── SendData ──► origin

For one exchange some thirty commands go this way, many of them through three layers. mitmproxy asks of each, in each,
whether it is one of seven kinds; here it is asked once what it is. A test holds both against each other.
"""

from __future__ import annotations

from typing import Any

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import (
    DropStream,
    GetHttpConnection,
    HttpLayer,
    RegisterHttpConnection,
    SendHttp,
)
from mitmproxy.proxy.layers.http._base import ReceiveHttp
from mitmproxy.proxy.layers.http._events import RequestHeaders


class Routed(HttpLayer):
    """As its base. Commands of further kinds, however they are derived, leave it as they are."""

    def event_to_child(self, child: Layer, event: events.Event) -> CommandGenerator[None]:
        command: Any
        for command in child.handle_event(event):
            kind = type(command)
            if kind is commands.SendData:  # as most are
                yield command
                continue
            if command.blocking or kind is commands.RequestWakeup:
                self.command_sources[command] = child
            if kind is ReceiveHttp:
                said = command.event
                if type(said) is RequestHeaders:
                    yield from self.make_stream(said.stream_id)
                if (stream := self.streams.get(said.stream_id)) is not None:  # else its exchange is over
                    yield from self.event_to_child(stream, said)
            elif kind is SendHttp:
                yield from self.event_to_child(self.connections[command.connection], command.event)
            elif kind is DropStream:
                self.streams.pop(command.stream_id, None)
            elif kind is GetHttpConnection:
                yield from self.get_connection(command)
            elif kind is RegisterHttpConnection:
                yield from self.register_connection(command)
            else:
                if kind is commands.OpenConnection:
                    self.connections[command.connection] = child
                yield command
