"""Who calls the console by another name, or sends a form from elsewhere, gets nothing; each answer has the headers."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from mitmsec.audit.console.guard import HEADERS, Guard

HOSTS = frozenset({"127.0.0.1:8765", "localhost:8765"})


async def _inner(scope: Any, receive: Any, send: Any) -> None:
    own = [(b"content-type", b"text/html"), *([(b"cache-control", b"max-age=300")] if scope["path"] == "/kept" else [])]
    await send({"type": "http.response.start", "status": 200, "headers": own})
    await send({"type": "http.response.body", "body": b"the page"})


def asked(method: str = "GET", path: str = "/", *, secure: bool = False, **headers: str) -> tuple[int, dict[str, str]]:
    given = {"host": "127.0.0.1:8765", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in given.items()]
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError

    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Guard(_inner, HOSTS, secure=secure)(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "LOCALHOST:8765"}, 200),
        ({"host": "evil.example:8765"}, 421),
        ({"host": "127.0.0.1"}, 421),
        ({"host": ""}, 421),
    ],
)
def test_only_our_own_names_are_answered(headers: dict[str, str], status: int) -> None:
    assert asked(**headers)[0] == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "same-origin", "origin": "null"}, 200),
        ({"sec_fetch_site": "same-origin"}, 200),
        ({"origin": "http://127.0.0.1:8765"}, 200),
        ({}, 403),
        ({"sec_fetch_site": "cross-site", "origin": "http://127.0.0.1:8765"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"sec_fetch_site": "none"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "https://127.0.0.1:8765"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_a_form_comes_from_a_page_of_ours(headers: dict[str, str], status: int) -> None:
    assert asked("POST", **headers)[0] == status
    assert asked("DELETE", **headers)[0] == status
    assert asked("GET", **headers)[0] == 200


@pytest.mark.parametrize("headers", [{}, {"host": "evil.example"}])
def test_every_answer_has_the_headers(headers: dict[str, str]) -> None:
    _, found = asked(**headers)
    assert HEADERS.items() <= found.items()
    assert "'unsafe" not in found["content-security-policy"]
    assert found["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert found["cache-control"] == "no-store"
    assert "strict-transport-security" not in found
    assert asked(secure=True)[1]["strict-transport-security"] == "max-age=31536000"
    assert asked(path="/kept")[1]["cache-control"] == "max-age=300"


def test_what_is_no_http_is_not_answered() -> None:
    async def never(*arguments: Any) -> Any:
        raise AssertionError

    asyncio.run(Guard(never, HOSTS, secure=False)({"type": "websocket", "headers": []}, never, never))
