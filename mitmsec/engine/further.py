"""A connection to the origin beside the one that was handed over."""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator, Layer
from mitmproxy.proxy.layers.http import RegisterHttpConnection


class Further(Layer):
    """It is made outside (OpenConnection), TLS included. `make_back` then makes the origin's side of it."""

    def __init__(self, context: Context, make_back: Callable[[Context], Layer]) -> None:
        super().__init__(context)
        self._make_back = make_back
        self._child: Layer | None = None

    def _handle_event(self, event: events.Event) -> CommandGenerator[None]:
        if self._child is not None:
            yield from self._child.handle_event(event)
        elif isinstance(event, events.Start):
            error = yield commands.OpenConnection(self.context.server)
            if not error:
                self._child = self._make_back(self.context)
                yield from self._child.handle_event(event)
            yield RegisterHttpConnection(self.context.server, error)
