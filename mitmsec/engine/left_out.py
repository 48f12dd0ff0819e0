"""What of mitmproxy is not loaded, because nothing here speaks it: QUIC with HTTP/3, DNS, frames of WebSockets.

mitmproxy imports each of its layers with any other. These are a third of what a worker would load, code for hostile
bytes that none of ours come to. In their places stand names: whoever makes anything of one fails, and a name that a
later mitmproxy wants besides is missing when the worker starts. Where a policy has QUIC decrypted, `take_in` loads what
that takes after all. Libraries that it imports for what is hardly ever done
(options in files, say) are loaded by whoever first asks anything of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

NAMES = {
    "mitmproxy.proxy.layers.dns": ("DNSLayer",),
    "mitmproxy.proxy.layers.http._http3": ("Http3Client", "Http3Server"),
    "mitmproxy.proxy.layers.quic": (
        "ClientQuicLayer",
        "QuicStreamEvent",
        "QuicStreamLayer",
        "RawQuicLayer",
        "ServerQuicLayer",
    ),
    "mitmproxy.proxy.layers.websocket": ("WebsocketLayer",),
    "mitmproxy.websocket": ("WebSocketData",),
}
QUIC = ("mitmproxy.proxy.layers.quic", "mitmproxy.proxy.layers.http._http3")
TAKERS = ("mitmproxy.proxy.layers", "mitmproxy.proxy.layers.http")
LATER = ("certifi", "ruamel", "ruamel.yaml", "wsproto", "wsproto.handshake")


class LeftOut:
    """Has no instance: `isinstance` says no of everything."""

    def __init__(self, *_: object) -> None:
        raise RuntimeError(f"{type(self).__name__} of mitmproxy is not loaded: see mitmsec.engine.left_out")


class Later(ModuleType):
    """In the place of a module until something of it is wanted. Modules below it can be had without it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            self.__path__ = spec.submodule_search_locations

    def __getattr__(self, name: str) -> Any:
        own = self.__name__
        if sys.modules.get(own) is self:
            del sys.modules[own]
        module = importlib.import_module(own)
        if (child := sys.modules.get(f"{own}.{name}")) is not None:  # which has come before it
            setattr(module, name, child)
        return getattr(module, name)


def leave_out() -> None:
    """To be called before anything imports mitmproxy's layers; what is loaded already stays."""
    for name, wanted in NAMES.items():
        if name not in sys.modules:
            module = sys.modules[name] = ModuleType(name)
            for kind in wanted:
                setattr(module, kind, type(kind, (LeftOut,), {}))
    for name in LATER:
        if name not in sys.modules:
            sys.modules[name] = Later(name)


def take_in() -> None:
    """Load what of QUIC and HTTP/3 was left out, and give it to the modules that have taken its names."""
    names = {kind: name for name in QUIC for kind in NAMES[name]}
    for name in QUIC:
        if sys.modules[name].__spec__ is None:
            del sys.modules[name]
    found = {kind: getattr(importlib.import_module(name), kind) for kind, name in names.items()}
    for taker in TAKERS:
        module = importlib.import_module(taker)
        for kind in found.keys() & vars(module).keys():
            setattr(module, kind, found[kind])
