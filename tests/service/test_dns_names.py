"""The gate's ear: packets from a ring, some of them nonsense, become names of addresses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import pytest
from dns_writer import address, query, response

from mitmsec.core.model import Endpoint
from mitmsec.service import dns_names
from mitmsec.service.dns_names import DnsNames
from mitmsec_redirect.dns_records import DnsPacket

LOCAL, SERVER = Endpoint.of("10.0.0.1", 4000), Endpoint.of("10.0.0.53", 53)
ANSWER = response("a.test", address("a.test", "192.0.2.1"))


class Ring:
    """What `DnsRing` would have read, fed by the test; readable while there is something."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.waiting: list[DnsPacket] = []
        self.closed = False

    def fileno(self) -> int:
        return self._fd

    def has(self, payload: bytes, *, sent: bool) -> None:
        self.waiting.append(DnsPacket(sent, LOCAL, SERVER, payload))

    def drain(self) -> list[DnsPacket]:
        taken, self.waiting = self.waiting, []
        return taken

    def close(self) -> None:
        self.closed = True


def told(story: Callable[[Ring, DnsNames], object], monkeypatch: pytest.MonkeyPatch) -> object:
    async def run() -> object:
        readable, writable = os.pipe()
        monkeypatch.setattr(dns_names, "DnsRing", Ring)
        names = DnsNames(readable)
        ring = names._ring
        assert isinstance(ring, Ring)
        try:
            return story(ring, names)
        finally:
            names.close()
            assert ring.closed
            os.close(readable)
            os.close(writable)

    return asyncio.run(run())


def test_what_has_come_is_taken_before_a_name_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def story(ring: Ring, names: DnsNames) -> object:
        ring.has(query("a.test"), sent=True)
        ring.has(ANSWER, sent=False)
        return names.names_of("192.0.2.1"), names.names_of("192.0.2.2")

    assert told(story, monkeypatch) == (("a.test",), ())


def test_a_message_that_goes_the_wrong_way_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that sends itself answers to port 53, or hears questions from there."""

    def story(ring: Ring, names: DnsNames) -> object:
        ring.has(query("a.test"), sent=False)
        ring.has(ANSWER, sent=False)
        ring.has(query("a.test"), sent=True)
        ring.has(ANSWER, sent=True)
        return names.names_of("192.0.2.1")

    assert told(story, monkeypatch) == ()


def test_nonsense_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def story(ring: Ring, names: DnsNames) -> object:
        ring.has(query("a.test"), sent=True)
        for payload in (b"", b"x", ANSWER[:-1], b"\xff" * 40):
            ring.has(payload, sent=False)
        ring.has(ANSWER, sent=False)
        return names.names_of("192.0.2.1")

    assert told(story, monkeypatch) == ("a.test",)


def test_what_comes_all_at_once_is_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_names, "TURN_LIMIT", 2)

    def story(ring: Ring, names: DnsNames) -> object:
        for payload in (b"x", b"y"):
            ring.has(payload, sent=False)
        ring.has(query("a.test"), sent=True)
        ring.has(ANSWER, sent=False)
        return names.names_of("192.0.2.1"), names.names_of("192.0.2.1")

    assert told(story, monkeypatch) == ((), ("a.test",))
