"""mitmproxy's layer for what is not HTTP, with an end that waits: for inspectors that speak when all has been said."""

from __future__ import annotations

from collections.abc import Callable

from mitmproxy.proxy import commands, events
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers import tcp

from mitmsec.engine.pauses import Wait, Work


class Relay(tcp.TCPLayer):
    """`ending` is asked what an end has to wait for, by whose it is (True: the client's)."""

    def __init__(self, context: Context, ending: Callable[[bool], Work | None]) -> None:
        super().__init__(context)
        self._ending = ending

    def relay_messages(self, event: events.Event) -> CommandGenerator[None]:
        """Raises Blocked instead of passing an end on. With the second end the client's connection is closed."""
        if isinstance(event, events.ConnectionClosed):
            work = self._ending(event.connection is self.context.client)
            if work is not None:
                blocked = yield Wait(work)
                if blocked is not None:
                    raise blocked
        yield from super().relay_messages(event)
        if self._handle_event == self.done:
            yield commands.CloseConnection(self.context.client)
