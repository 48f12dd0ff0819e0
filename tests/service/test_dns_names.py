"""The gate's ear: packets from a ring, some of them nonsense, become names of addresses."""

from __future__ import annotations

import asyncio
import os
import struct
import time
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
        ring = Ring(readable)
        names = DnsNames(ring)
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


def test_what_is_heard_over_tcp_counts_like_what_the_ring_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its turn, or as soon as a name is asked for."""

    def story(ring: Ring, names: DnsNames) -> object:
        names.hear(LOCAL, SERVER, True, query("a.test"))
        names.hear(LOCAL, SERVER, False, b"nonsense")
        names.hear(LOCAL, SERVER, False, ANSWER)
        return names.names_of("192.0.2.1")

    assert told(story, monkeypatch) == ("a.test",)


def test_what_is_heard_is_looked_at_though_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def story(ring: Ring, names: DnsNames) -> object:
        names.hear(LOCAL, SERVER, True, query("a.test"))
        loop = asyncio.get_running_loop()
        looked: asyncio.Future[int] = loop.create_future()
        loop.call_soon(lambda: looked.set_result(len(names._waiting)))
        return looked

    async def run() -> None:
        readable, writable = os.pipe()
        ring = Ring(readable)
        names = DnsNames(ring)
        assert await story(ring, names) == 0  # type: ignore[misc]
        names.close()
        os.close(readable)
        os.close(writable)

    asyncio.run(run())


def test_without_a_ring_what_is_relayed_is_all_that_is_heard() -> None:
    async def run() -> object:
        names = DnsNames()
        names.hear(LOCAL, SERVER, True, query("a.test"))
        names.hear(LOCAL, SERVER, False, ANSWER)
        heard = names.names_of("192.0.2.1")
        names.hear(LOCAL, SERVER, True, query("b.test"))
        names.close()
        return heard

    assert asyncio.run(run()) == ("a.test",)


def test_what_comes_all_at_once_is_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_names, "TURN_S", 0.0)

    def story(ring: Ring, names: DnsNames) -> object:
        ring.has(query("a.test"), sent=True)
        ring.has(ANSWER, sent=False)
        return names.names_of("192.0.2.1"), names.names_of("192.0.2.1")

    assert told(story, monkeypatch) == ((), ("a.test",))


def slow_answer(size_bytes: int) -> bytes:
    """Service records whose parameters say nothing, as many as there is room for."""
    parameters = b"".join(struct.pack("!HH", 9, 0) for _ in range(28))
    record = b"\xc0\x0c" + struct.pack("!HHIH", 65, 1, 60, 3 + len(parameters)) + b"\0\1\0" + parameters
    count = size_bytes // len(record)
    return struct.pack("!HHHHHH", 1, 0x8180, 1, count, 0, 0) + b"\1a\0" + struct.pack("!HH", 65, 1) + record * count


def test_whoever_makes_its_answers_slow_to_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay carries up to 64 KiB; a program may have a name server of its own."""

    def story(ring: Ring, names: DnsNames) -> object:
        for size_bytes in (60_000, 16_000):
            for _ in range(200):
                names.hear(LOCAL, SERVER, False, slow_answer(size_bytes))
        began_s = time.thread_time()
        names.names_of("192.0.2.1")
        return time.thread_time() - began_s, len(names._waiting)

    took_s, left = told(story, monkeypatch)  # type: ignore[misc]
    assert took_s < 10 * dns_names.TURN_S
    assert 0 < left < 200, "what is longer than over TCP is not looked at"
