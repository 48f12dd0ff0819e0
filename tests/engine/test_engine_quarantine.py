"""Content that a finding stops is kept as it travelled, sealed, and sent at the recorder's pace; nothing else is."""

from __future__ import annotations

import asyncio
import gzip
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from engine_world import NAME, Word, World, connected, origin, world

from mitmsec.audit.event import SealedSeen
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import OnFinding
from mitmsec.core.quarantine import About, Recipient, parse_about, parse_preamble
from mitmsec.engine import quarantine
from mitmsec.engine.quarantine import Quarantine
from mitmsec_certs.quarantine_box import Sealing, new_key, opened_key, opened_pieces, private_in

PEOPLE = [new_key() for _ in range(2)]
SEALING = Sealing([Recipient(name=f"p{place}", public=public) for place, (_, public) in enumerate(PEOPLE)])
ABOUT = About(
    flow="flow-1", rule="r", detector="d", summary="s", location="l", host="h", method="", url="", content_type="",
    codings="", name="", sent=True,
)  # fmt: skip


def opened(seen: Sequence[SealedSeen]) -> tuple[bool, About, bytes]:
    """Whether it is whole, what it says of itself, and the content."""
    assert [one.at for one in seen] == [sum(len(one.data) for one in seen[:place]) for place in range(len(seen))]
    assert [one.is_last for one in seen] == [False] * (len(seen) - 1) + [True]
    file = b"".join(one.data for one in seen)
    header, at = parse_preamble(file)
    key, _ = opened_key(header, [private_in(pem) for pem, _ in PEOPLE])
    line, _, content = b"".join(opened_pieces(key, file[:at], io.BytesIO(file[at:]))).partition(b"\n")
    assert header.is_whole == seen[-1].is_whole
    assert header.content_bytes == len(content)
    return header.is_whole, parse_about(line), content


class Answering:
    """An origin that answers /small and /chunked with a secret, and remembers what has come after heads."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.connections = 0
        self._all_over = asyncio.Event()

    async def over(self) -> None:
        """All that comes has come."""
        await asyncio.wait_for(self._all_over.wait(), 10)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._all_over.clear()
        body = bytearray()
        try:
            await self._serve(reader, writer, body)
        finally:
            self.bodies.append(bytes(body))
            if len(self.bodies) == self.connections:
                self._all_over.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, came: bytearray) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/chunked" in head:
            body = b"x" * 90_000 + b"SECRET"
            writer.write(
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            )
        else:
            body = gzip.compress(b"a SECRET")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        while data := await reader.read(65536):
            came += data


async def items(made: World, count: int) -> list[tuple[bool, About, bytes]]:
    """So many, once they have come, in the order of their findings."""
    assert made.engine.quarantine is not None
    await asyncio.wait_for(made.engine.quarantine.settled(), 10)
    named = list(dict.fromkeys(seen.item for seen in made.recorder.findings))
    assert len(named) == count
    assert {seen.verdict for seen in made.recorder.findings} == {OnFinding.QUARANTINE}
    return [opened([seen for seen in made.recorder.of(SealedSeen) if seen.item == name]) for name in named]


def quarantining(tmp_path: Path, port: int) -> Any:
    return world(
        tmp_path, port, inspectors=[Word()], on_finding=OnFinding.QUARANTINE, kind=Plaintext.HTTP, sealing=SEALING
    )


async def ask(made: World, request: bytes) -> bytes:
    reader, writer = await connected(made, None)
    writer.write(request)
    got = b""
    try:
        while data := await asyncio.wait_for(reader.read(65536), 10):
            got += data
    except ConnectionResetError:
        got += b"reset"
    return got


def test_what_is_stopped_is_kept_as_it_travelled(tmp_path: Path) -> None:
    async def main() -> None:
        answering = Answering()
        post = f"POST /up HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: text/plain\r\n".encode()
        upload = b"a SECRET and more"
        large = b"SECRET" + b"x" * 199_994
        form = b'--b\r\ncontent-disposition: form-data; name="f"; filename="a.txt"\r\n\r\nSECRET\r\n--b--\r\n'
        async with origin(answering, None) as port, quarantining(tmp_path, port) as made:
            page = await ask(made, post + b"Content-Length: %d\r\n\r\n" % len(upload) + upload)
            assert page.startswith(b"HTTP/1.1 403 ")
            await ask(made, post + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(large), large))
            of_form = post.replace(b"text/plain", b"multipart/form-data; boundary=b")
            await ask(made, of_form + b"Content-Length: %d\r\n\r\n" % len(form) + form)
            get = f"GET /small HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
            assert (await ask(made, get)).startswith(b"HTTP/1.1 403 ")
            assert (await ask(made, get.replace(b"/small", b"/chunked"))).endswith(b"reset")
            first, second, third, fourth, fifth = await items(made, 5)
            assert (first[0], first[2]) == (True, upload)
            assert (first[1].location, first[1].method, first[1].content_type) == ("request.body", "POST", "text/plain")
            assert not second[0]
            assert large.startswith(second[2])
            assert second[2].startswith(b"SECRET")
            assert (third[1].name, third[1].location, third[2]) == ("a.txt", "request.body in a.txt", b"SECRET")
            assert (fourth[0], fourth[1].codings, gzip.decompress(fourth[2])) == (True, "gzip", b"a SECRET")
            assert b"SECRET" in fifth[2]
            await answering.over()
            assert not any(answering.bodies), "no upload was complete, so none came"
            assert made.engine.quarantine is not None
            assert made.engine.quarantine._used_bytes == 0

    asyncio.run(main())


class Slow:
    """A recorder that lets itself be waited for."""

    def __init__(self) -> None:
        self.seen: list[SealedSeen] = []
        self.congested = True
        self.may = asyncio.Event()

    def record(self, seen: Any) -> None:
        self.seen.append(seen)
        self.may.clear()

    async def relieved(self) -> None:
        await self.may.wait()


def test_it_goes_at_the_recorders_pace_and_is_then_forgotten() -> None:
    async def main() -> None:
        recorder = Slow()
        made = Quarantine(SEALING, recorder)
        kept = made.kept()
        for _ in range(10):
            kept.add(b"x" * 100_000)
        kept.is_ended = True
        assert kept.put(ABOUT) == kept.put(ABOUT)
        kept.add(b"more")
        kept.leave()
        await asyncio.sleep(0.01)
        assert recorder.seen == []
        settled = asyncio.create_task(made.settled())
        while not settled.done():
            before = len(recorder.seen)
            recorder.may.set()
            await asyncio.sleep(0.001)
            assert len(recorder.seen) <= before + 1
        assert opened(recorder.seen) == (True, ABOUT, b"x" * 1_000_000)
        assert made._used_bytes == 0

    asyncio.run(main())


def test_what_is_kept_is_bounded_for_a_part_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        recorder = Slow()
        recorder.may.set()
        monkeypatch.setattr(quarantine, "CONTENT_LIMIT_BYTES", 10)
        monkeypatch.setattr(quarantine, "JOIN_BYTES", 8)
        made = Quarantine(SEALING, recorder, limit_bytes=15)
        first, third = made.kept(), made.kept()
        first.add(b"12345678")
        first.is_ended = True
        first.add(b"9a")
        first.add(b"b")  # of one part: its beginning makes room
        assert (b"".join(first.chunks), first.begins_at, first.is_whole) == (b"9ab", 8, False)
        third.add(b"1234")
        third.add(b"5678")
        third.add(b"9")
        assert (b"".join(third.chunks), third.begins_at) == (b"123456789", 0)
        third.add(b"the end")
        assert (b"".join(third.chunks), third.begins_at, made._used_bytes) == (b"9the end", 8, 11)
        first.leave()
        first.leave()
        assert made._used_bytes == 8
        third.is_ended = True
        third.put(ABOUT)
        await made.settled()
        is_whole, about, content = opened(recorder.seen)
        assert (is_whole, about.begins_at, content) == (False, 8, b"9the end")
        assert made._used_bytes == 0

    asyncio.run(main())


def test_whoever_has_most_gives_way_so_two_uploads_that_never_end_keep_nobody_elses_from_being_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        recorder = Slow()
        made = Quarantine(SEALING, recorder, limit_bytes=100)
        monkeypatch.setattr(quarantine, "JOIN_BYTES", 10)
        large, larger, later, last = (made.kept() for _ in range(4))
        for _ in range(4):
            large.add(b"0123456789")
        for _ in range(6):
            larger.add(b"0123456789")
        later.add(b"a 13 B secret")
        assert (later.begins_at, large.begins_at, larger.begins_at) == (0, 0, 20)
        larger.put(ABOUT)  # from here on it loses nothing
        for _ in range(4):
            later.add(b"x")
        last.add(b"x" * 20)
        assert (large.begins_at, larger.size_bytes, larger.begins_at, last.begins_at) == (20, 40, 20, 0)
        last.add(b"y" * 180)  # of a piece for which there is not enough, its end
        assert (b"".join(last.chunks), later.begins_at) == (b"y" * 22, 0)
        assert made._used_bytes == sum(one.size_bytes for one in (large, larger, later, last)) <= 100
        recorder.congested = False
        await made.settled()
        is_whole, about, content = opened(recorder.seen)
        assert (is_whole, about.begins_at, content) == (False, 20, b"0123456789" * 4)
        for one in (large, later, last):
            one.leave()
        assert (made._used_bytes, made._reading) == (0, {})

    asyncio.run(main())


def test_what_has_been_sent_makes_room_before_the_rest_has_gone() -> None:
    async def main() -> None:
        recorder = Slow()
        made = Quarantine(SEALING, recorder)
        kept = made.kept()
        for _ in range(10):
            kept.add(b"x" * 100_000)
        kept.put(ABOUT)
        while len(recorder.seen) < 2:
            recorder.may.set()
            await asyncio.sleep(0)
        assert made._used_bytes <= 800_000
        recorder.congested = False
        recorder.may.set()
        await made.settled()
        assert opened(recorder.seen)[2] == b"x" * 1_000_000

    asyncio.run(main())


def test_pieces_of_two_bytes_take_no_more_than_they_count() -> None:
    async def main() -> None:
        recorder = Slow()
        recorder.congested = False
        made = Quarantine(SEALING, recorder)
        kept = made.kept()
        for _ in range(20_000):
            kept.add(b"xy")
        kept.add(b"z" * 100_000)
        kept.add(b"xy")
        taken_bytes = sum(map(sys.getsizeof, kept.chunks))
        assert made._used_bytes == kept.size_bytes == 140_002
        assert taken_bytes < 1.1 * kept.size_bytes
        kept.put(ABOUT)
        await made.settled()
        assert opened(recorder.seen)[2] == b"xy" * 20_000 + b"z" * 100_000 + b"xy"

    asyncio.run(main())
