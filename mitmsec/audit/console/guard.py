"""What stands before every page: names, origins, headers. Pure ASGI, for every answer there is.

Host not one of ours ─► 421 (a name that somebody else's DNS leads here)
POST, not from a page of ours (Sec-Fetch-Site, Origin) ─► 403; each form has its session's token as well
every answer ─► a policy by which a browser runs, loads and sends nothing but what came from here
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

type Scope = MutableMapping[str, Any]
type Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
type Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
type App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
SAFE = frozenset({"GET", "HEAD"})


class Guard:
    """In front of `app`, which browsers may call by `hosts` (NAME:PORT)."""

    def __init__(self, app: App, hosts: frozenset[str], *, secure: bool) -> None:
        self._app, self._hosts, self._secure = app, hosts, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*_added(message["headers"], secure=self._secure)]
            await send(message)

        refusal = self._refusal(scope["method"], headers)
        if refusal is None:
            return await self._app(scope, receive, guarded)
        status, why = refusal
        plain = [(b"content-type", b"text/plain; charset=utf-8")]
        await guarded({"type": "http.response.start", "status": status, "headers": plain})
        await guarded({"type": "http.response.body", "body": why.encode()})

    def _refusal(self, method: str, headers: MutableMapping[str, str]) -> tuple[int, str] | None:
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return 421, "this console is not called so; `mitmsec audit console` printed its address\n"
        if method in SAFE:
            return None
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        own = f"{'https' if self._secure else 'http'}://{host}"
        if site != "same-origin" and (site is not None or origin != own):  # with no-referrer, Origin may be `null`
            return 403, "this does not come from a page of the console\n"
        return None


def _added(headers: Iterable[tuple[bytes, bytes]], *, secure: bool) -> Iterable[tuple[bytes, bytes]]:
    present = set()
    for name, value in headers:
        present.add(name)
        yield name, value
    for text, value_text in HEADERS.items():
        yield text.encode(), value_text.encode()
    if b"cache-control" not in present:
        yield b"cache-control", b"no-store"
    if secure:
        yield b"strict-transport-security", b"max-age=31536000"
