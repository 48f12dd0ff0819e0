"""Resets that reach every copy of a socket, and pages that arrive."""

from __future__ import annotations

import asyncio
import socket

import pytest
from gate_house import on_loop, pair_over_loopback, wait_reset

from mitmsec.gate.refuse import Farewell, page, reset


@on_loop
async def test_a_reset_is_seen_although_somebody_else_holds_the_socket_too() -> None:
    one, other = await pair_over_loopback()
    with one, other.dup() as copy:
        one.settimeout(20)
        reset(other)
        assert wait_reset(one)
        assert wait_reset(copy)
        assert other.fileno() == -1
        reset(other)  # nothing more


def test_a_page_names_rule_reason_and_flow_and_is_complete() -> None:
    text = page("no trackers", "works council § 4", "f1")
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 403 ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert all(word in body.decode() for word in ("no trackers", "works council § 4", "f1"))


@pytest.mark.parametrize("end", ["closes", "resets", "stays"])
def test_a_farewell_ends_when_the_client_does_or_after_its_time(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmsec.gate.refuse.LINGER_S", 0.05 if end == "stays" else 60)

    async def scenario() -> None:
        one, other = await pair_over_loopback()
        ended = asyncio.Event()
        one.settimeout(20)
        one.send(b"POST / HTTP/1.1\r\n\r\n" + b"x" * 100_000)
        farewell = Farewell(asyncio.get_running_loop(), other, b"bye", ended.set)
        assert one.recv(100) == b"bye"
        assert one.recv(100) == b""
        if end == "closes":
            one.shutdown(socket.SHUT_WR)
        elif end == "resets":
            reset(one)
        await asyncio.wait_for(ended.wait(), 20)
        assert other.fileno() == -1
        farewell.end()
        one.close()

    asyncio.run(scenario())
