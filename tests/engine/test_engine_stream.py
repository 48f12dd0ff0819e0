"""WebSocket through the engine: relayed as it came, read beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
import wsproto.events
from engine_world import DECISION, NAME, Recorder, Word, connected, origin, server_context, trusting, world
from msgspec.structs import replace
from wsproto import ConnectionType, WSConnection
from wsproto.extensions import PerMessageDeflate

from mitmsec.audit.event import Outcome
from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.model import Finding, OnFailure, OnFinding
from mitmsec.engine.stream import UNHEARD, Stream
from mitmsec.engine.watch import Blocked, Watch


class Peer:
    """One end of a WebSocket."""

    def __init__(
        self, kind: ConnectionType, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, deflate: bool
    ) -> None:
        self.ws, self.reader, self.writer, self.deflate = WSConnection(kind), reader, writer, deflate

    def send(self, event: wsproto.events.Event) -> None:
        self.writer.write(self.ws.send(event))

    async def next(self) -> Any:
        while True:
            for event in self.ws.events():
                return event
            data = await self.reader.read(65536)
            self.ws.receive_data(data or None)

    async def message(self) -> str:
        text = ""
        while True:
            event = await self.next()
            assert isinstance(event, wsproto.events.TextMessage), event
            text += event.data
            if event.message_finished:
                return text


def serve(*, deflate: bool) -> Any:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(ConnectionType.SERVER, reader, writer, deflate=deflate)
        await peer.next()
        peer.send(wsproto.events.AcceptConnection(extensions=[PerMessageDeflate()] if deflate else []))
        while True:
            event = await peer.next()
            if not isinstance(event, wsproto.events.TextMessage):
                return
            peer.send(wsproto.events.TextMessage(data=event.data.upper(), message_finished=event.message_finished))

    return one


async def opened(made: Any, tmp_path: Path, *, deflate: bool) -> Peer:
    reader, writer = await connected(made, trusting(tmp_path))
    peer = Peer(ConnectionType.CLIENT, reader, writer, deflate=deflate)
    extensions = [PerMessageDeflate()] if deflate else []
    peer.send(wsproto.events.Request(host=NAME, target="/ws", extensions=extensions))
    assert isinstance(await peer.next(), wsproto.events.AcceptConnection)
    return peer


@pytest.mark.parametrize("deflate", [False, True])
def test_messages_pass_and_are_read(tmp_path: Path, deflate: bool) -> None:
    async def main() -> None:
        ca, word = trustme.CA(), Word()
        async with (
            origin(serve(deflate=deflate), server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[word]) as made,
        ):
            peer = await opened(made, tmp_path, deflate=deflate)
            for text in ("hello", "the secret", "again " * 1000):
                peer.send(wsproto.events.TextMessage(data=text))
                assert await peer.message() == text.upper()
            assert word.content("stream", sent=True) == [b"hello", b"the secret", b"again " * 1000]
            assert word.content("stream", sent=False) == [b"HELLO", b"THE SECRET", b"AGAIN " * 1000]
            assert [seen.finding.location for seen in made.recorder.findings] == ["response.stream"]
            assert [(seen.status, seen.url) for seen in made.recorder.requests] == [(101, f"https://{NAME}:{port}/ws")]
            peer.writer.close()
            assert (await made.end()).outcome == Outcome.COMPLETED

    asyncio.run(main())


def test_a_finding_in_a_message_breaks_the_connection_off(tmp_path: Path) -> None:
    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(serve(deflate=False), server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()], on_finding=OnFinding.BLOCK) as made,
        ):
            peer = await opened(made, tmp_path, deflate=False)
            peer.send(wsproto.events.TextMessage(data="a SECRET"))
            assert (await made.end()).outcome == Outcome.BLOCKED

    asyncio.run(main())


class AtTheEnd(Word):
    """Is certain only once the part is over, as a whole word at its end is."""

    def open(self, part: Part) -> Any:
        return _AtTheEnd(super().open(part)) if part.kind is PartKind.STREAM else None


class _AtTheEnd:
    def __init__(self, reading: Any) -> None:
        self._reading, self._data = reading, b""

    def feed(self, data: bytes) -> Sequence[Finding]:
        self._data += data
        return ()

    def close(self) -> Any:
        return self._reading.feed(self._data)


@pytest.mark.parametrize("deflate", [False, True])
def test_what_stands_at_the_end_of_a_message_is_found_with_its_last_frame(tmp_path: Path, deflate: bool) -> None:
    """Not with the next message: there may be none, and this one has to be stopped."""

    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(serve(deflate=deflate), server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[AtTheEnd()], on_finding=OnFinding.BLOCK) as made,
        ):
            peer = await opened(made, tmp_path, deflate=deflate)
            peer.send(wsproto.events.TextMessage(data="fine"))
            assert await peer.message() == "FINE"
            peer.send(wsproto.events.TextMessage(data="the SEC", message_finished=False))
            peer.send(wsproto.events.TextMessage(data="RET"))
            assert (await made.end()).outcome == Outcome.BLOCKED

    asyncio.run(main())


def test_frames_that_cannot_be_read_are_relayed_and_said_so(tmp_path: Path) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n")
        while data := await reader.read(1000):
            writer.write(data)

    async def main() -> None:
        ca = trustme.CA()
        async with (
            origin(answers, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[Word()]) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(
                f"GET / HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n".encode()
            )
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"\x7f\x7f no frames at all")
            assert await reader.readexactly(19) == b"\x7f\x7f no frames at all"
            assert {fault.what for fault in made.recorder.faults} == {"not_inspected"}

    asyncio.run(main())


def test_another_upgrade_is_read_as_plain_bytes(tmp_path: Path) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\nhello")
        await reader.read()

    async def main() -> None:
        ca, word = trustme.CA(), Word()
        async with (
            origin(answers, server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[word]) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path))
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: other\r\nConnection: upgrade\r\n\r\n".encode())
            assert await reader.readuntil(b"hello")
            async with asyncio.timeout(5):  # an alert may take its time
                while word.content("stream", sent=False) != [b"hello"]:
                    await asyncio.sleep(0.01)

    asyncio.run(main())


class Far(Word):
    """Somebody whose verdict has to be awaited, at the end of what it wants to see."""

    limit_s, limit_bytes = 5.0, 1 << 20

    def __init__(self, *, wants: bool) -> None:
        super().__init__()
        self.wants, self.abandoned = wants, 0
        self.asked: list[Part] = []

    def begin(self, part: Part) -> Any:
        self.asked.append(part)
        return self if self.wants else None

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.mark.parametrize("on_failure", OnFailure)
@pytest.mark.parametrize("wants", [False, True])
def test_where_no_verdict_can_be_awaited_that_is_said_as_the_stream_opens(wants: bool, on_failure: OnFailure) -> None:
    async def main() -> None:
        far, recorder = Far(wants=wants), Recorder()
        decision = replace(DECISION, inspect=("word",))
        watch = Watch("f", decision, {"word": far}, on_failure, recorder)
        sent, received = (Part(flow="f", kind=PartKind.STREAM, sent=way, host="h") for way in (True, False))
        if wants and on_failure is OnFailure.CLOSED:
            with pytest.raises(Blocked):
                Stream(watch, sent, received)
            assert far.abandoned == 2
        else:
            Stream(watch, sent, received)
        assert [(seen.what, seen.detail) for seen in recorder.faults] == [("not_inspected", UNHEARD)] * wants
        assert [part.is_endless for part in far.asked] == [True, True]

    asyncio.run(main())


class Dear(Word):
    """Takes two milliseconds to say that it wants a message."""

    def open(self, part: Part) -> Any:
        end_s = time.process_time() + 0.002
        while part.kind is PartKind.STREAM and time.process_time() < end_s:
            pass
        return super().open(part)


@pytest.mark.parametrize("on_finding", [OnFinding.ALERT, OnFinding.BLOCK])
def test_many_small_messages_in_one_read_hold_nobody_up_and_are_all_read(tmp_path: Path, on_finding: OnFinding) -> None:
    async def main() -> None:
        ca, longest_s, dear = trustme.CA(), 0.0, Dear()

        async def beat() -> None:
            nonlocal longest_s
            before_s = time.process_time()
            while True:
                await asyncio.sleep(0)
                longest_s = max(longest_s, time.process_time() - before_s)
                before_s = time.process_time()

        async with (
            origin(serve(deflate=False), server_context(ca)) as port,
            world(tmp_path, port, [ca], inspectors=[dear], on_finding=on_finding) as made,
        ):
            peer = await opened(made, tmp_path, deflate=False)
            beating = asyncio.create_task(beat())
            for _ in range(200):  # 0.4 s
                peer.send(wsproto.events.TextMessage(data="x"))
            for _ in range(200):
                assert await peer.message() == "X"
            beating.cancel()
            assert 0 < longest_s < 0.2
            for sent, text in ((True, b"x"), (False, b"X")):
                assert dear.content("stream", sent=sent) == [text] * 200
            assert made.recorder.faults == []

    asyncio.run(main())
