"""What of mitmproxy lives in this process: its layers, the options that they read, and a mode of our own.

mitmproxy's Master and addons are left out. They swallow what a hook raises and go on forwarding, so nothing that
decides may be one of them; and they bring 370 more modules into a process that reads hostile bytes (0.6 s and 21 MB).
Nothing listens, nothing is written, no configuration folder is looked for.
"""

from __future__ import annotations

import time

from mitmproxy import options, version
from mitmproxy.connection import Client, Connection, ConnectionState, Server
from mitmproxy.proxy import mode_specs
from mitmproxy.proxy.context import Context

from mitmsec.core.model import Endpoint
from mitmsec.engine.openssl import TlsSession

SUPPORTED = ("12.2.", "12.3.")  # layers that are subclassed here are mitmproxy's own business, and may change
_MORE_OPTIONS: tuple[tuple[str, object, object], ...] = (  # that mitmproxy's addons would define
    ("body_size_limit", str | None, None),
    ("connection_strategy", str, "lazy"),
    ("keep_host_header", bool, False),
    ("normalize_outbound_headers", bool, True),
    ("proxy_debug", bool, False),
    ("store_streamed_bodies", bool, False),
    ("stream_large_bodies", str | None, None),
    ("validate_inbound_headers", bool, True),
)


class MitmsecMode(mode_specs.ProxyMode):  # type: ignore[no-untyped-call]
    """Flows that a gate hands over. No port: there is nothing to listen on."""

    description = "flows handed over by the mitmsec gate"
    transport_protocol = mode_specs.TCP
    default_port = None

    def __post_init__(self) -> None:
        if self.data:
            raise ValueError("the mode takes no arguments")


class _FlowContext(Context):
    """A context that does not make a server only for it to be replaced, nor do its forks."""

    def __init__(self, client: Client, options: options.Options) -> None:
        self.client, self.options, self.layers = client, options, []

    def fork(self) -> Context:
        fork = _FlowContext(self.client, self.options)
        fork.server, fork.layers = self.server, self.layers.copy()
        return fork


class Embedded:
    """mitmproxy as this process uses it."""

    def __init__(self) -> None:
        if not version.VERSION.startswith(SUPPORTED):
            raise RuntimeError(f"mitmproxy {version.VERSION} is not one of {', '.join(SUPPORTED)}x")
        self._mode = mode_specs.ProxyMode.parse("mitmsec")
        self.options = options.Options()
        for name, kind, default in _MORE_OPTIONS:
            self.options.add_option(name, kind, default, "")
        self.options.update(  # type: ignore[no-untyped-call]
            http2_ping_keepalive=0,
            rawtcp=True,
            websocket=False,  # upgraded connections are relayed as they are and read beside it
        )
        values = {name: getattr(self.options, name) for name in self.options.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118
        vars(self.options).update(values)  # settled: else mitmproxy copies a value whenever it is read

    def context(self, flow: str, client: Endpoint, origin: Endpoint, started_s: float) -> Context:
        """The context of a flow whose client is connected. It has no server until it is given one."""
        connection = Client(
            id=f"{flow} client",  # what tells connections of one flow apart: a random one takes long to make
            peername=(client.address, client.port),
            sockname=(origin.address, origin.port),
            timestamp_start=started_s,
            proxy_mode=self._mode,
            state=ConnectionState.OPEN,
        )
        return _FlowContext(connection, self.options)


def server_of(flow: str, origin: Endpoint, name: str, session: TlsSession | None) -> Server:
    """The origin's side of a flow that is connected, for mitmproxy's layers."""
    address = (origin.address, origin.port)
    server = Server(id=f"{flow} origin", address=address, peername=address, timestamp_start=time.time())
    server.state = ConnectionState.OPEN
    if session is not None:
        describe(server, session)
        server.sni = name
    return server


def describe(connection: Connection, session: TlsSession) -> None:
    """What mitmproxy's layers read of a TLS connection that was made outside of them."""
    connection.tls = True
    connection.alpn = session.alpn
    connection.timestamp_tls_setup = time.time()
