"""Small files by HTTP, from real servers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from issuer_stage import responding

from mitmsec.service import fetching
from mitmsec.service.fetching import FetchFailed, fetch


def got(url: str, limit_bytes: int = 1000, deadline_s: float = 5.0) -> bytes:
    return fetch(url, limit_bytes=limit_bytes, deadline_s=deadline_s)


@contextlib.contextmanager
def raw(*pieces: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """A server that says exactly this, whatever it is asked; its address."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)
                for piece in pieces:
                    sock.sendall(piece)
                    time.sleep(pause_s)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_what_is_there_comes() -> None:
    with responding() as server:
        server.answers = {"/a?b=c": lambda: b"the content", "/": lambda: b"the root"}
        assert got(server.url("/a?b=c")) == b"the content"
        assert got(server.url("")) == b"the root"
        with pytest.raises(FetchFailed, match="status 404"):
            got(server.url("/elsewhere"))


def test_not_more_than_was_asked_for() -> None:
    with responding() as server:
        server.answers["/"] = lambda: bytes(1001)
        with pytest.raises(FetchFailed, match="more than 1000 bytes"):
            got(server.url("/"))


def test_a_redirect_is_no_answer() -> None:
    with raw(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n") as url:
        with pytest.raises(FetchFailed, match="302"):
            got(url)


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "http:///", "file:///etc/passwd", "http://[::1/", "http://x:y/"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(FetchFailed):
        got(url)


@pytest.mark.parametrize("where", ["headers", "body"])
def test_who_answers_in_drops_is_not_waited_for(where: str) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    first, drop = (head, b"x") if where == "body" else (b"HTTP/1.1 200 OK\r\nX: ", b"y")
    begun_s = time.monotonic()
    with raw(first, *[drop] * 500, pause_s=0.02) as url, pytest.raises(FetchFailed, match="no answer in time"):
        got(url, deadline_s=0.3)
    assert time.monotonic() - begun_s < 8, "less than the drops take"


def test_without_any_time_nobody_is_asked() -> None:
    with raw() as url, pytest.raises(FetchFailed, match="no answer in time"):
        got(url, deadline_s=0.0)


def test_a_name_with_a_dead_address_and_a_live_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with responding() as server, socket.create_server(("127.0.0.1", 0)) as dead:
        server.answers["/"] = lambda: b"the content"
        gone = dead.getsockname()
        dead.close()
        live = socket.getaddrinfo("127.0.0.1", server.port, type=socket.SOCK_STREAM)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*live[0][:4], gone), *live])
        assert got("http://issuer.test/") == b"the content"
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
        with pytest.raises(FetchFailed):
            got("http://issuer.test/")


def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "QUIET_S", 0.1)
    with raw(b"", pause_s=1.0) as url, pytest.raises(FetchFailed, match="no answer"):
        got(url)


def test_nobody_there_no_such_name_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(FetchFailed, match="refused"):
        got(f"http://127.0.0.1:{port}/")
    with pytest.raises(FetchFailed, match="name is not known"):
        got("http://no-such-host.invalid/")
    with raw(b"220 mail.test ESMTP\r\n") as url, pytest.raises(FetchFailed, match="badstatusline"):
        got(url)
