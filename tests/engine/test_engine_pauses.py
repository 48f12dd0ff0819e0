"""Inspectors that are waited for: what they read holds back its sender, and what they say decides what goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trustme
from engine_h2 import Client, Origin, get
from engine_world import NAME, Pages, connected, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome
from mitmsec.core.inspection import AwaitedInspection, Part
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import Finding, OnFailure, OnFinding, Severity
from mitmsec.engine.pauses import Pauses, Wait

MIB = 1 << 20


class Far:
    """Finds SECRET in what it was given, once it may speak. `reads` counts the bytes that it has been handed."""

    name = "far"
    limit_s = 20.0
    limit_bytes = 1 << 30

    def __init__(self, wants: Callable[[Part], bool] = lambda part: True) -> None:
        self._wants = wants
        self.may_speak = asyncio.Event()
        self.reads = self.ends = self.abandons = 0

    def begin(self, part: Part) -> AwaitedInspection | None:
        return _FarReading(self) if self._wants(part) else None


class _FarReading:
    def __init__(self, far: Far) -> None:
        self._far, self._content = far, bytearray()

    async def feed(self, data: bytes) -> Sequence[Finding]:
        self._far.reads += len(data)
        self._content += data[: MIB - len(self._content)]
        await self._far.may_speak.wait()
        return ()

    async def close(self) -> Sequence[Finding]:
        self._far.ends += 1
        await self._far.may_speak.wait()
        if b"SECRET" not in self._content:
            return ()
        text = Finding(
            detector="far", severity=Severity.HIGH, confidence=1.0, summary="it", evidence="", location="request.body"
        )
        return [text]

    def abandon(self) -> None:
        self._far.abandons += 1


async def h2_client(made: object, tmp_path: Path) -> Client:
    return Client(*await connected(made, trusting(tmp_path, alpn=("h2",))))  # type: ignore[arg-type]


@pytest.mark.parametrize("on_finding", OnFinding)
def test_a_body_goes_on_when_all_have_looked(tmp_path: Path, on_finding: OnFinding) -> None:
    async def main() -> None:
        pages, far = Pages(), Far()
        far.may_speak.set()
        async with (
            origin(pages, None) as port,
            world(tmp_path, port, inspectors=[far], on_finding=on_finding, kind=Plaintext.HTTP) as made,
        ):
            reader, writer = await connected(made, None)
            for _ in range(2):
                writer.write(b"POST /bytes/300000 HTTP/1.1\r\nHost: %b\r\n" % NAME.encode())
                writer.write(b"Transfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n5\r\n more\r\n0\r\n\r\n")
                await reader.readuntil(b"\r\n\r\n")
                assert await asyncio.wait_for(reader.readexactly(300_000), 10) == b"x" * 300_000
            assert [body for _, _, body in pages.requests] == [b"some more"] * 2
            writer.close()
            await made.end()
            assert far.reads == 2 * 300_009
            assert [(seen.request_bytes, seen.response_bytes) for seen in made.recorder.requests] == [(9, 300_000)] * 2

    asyncio.run(main())


@pytest.mark.parametrize("on_finding", OnFinding)
def test_a_slow_inspector_holds_back_its_sender_over_http1(tmp_path: Path, on_finding: OnFinding) -> None:
    pushed = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal pushed
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (64 * MIB))
        while pushed < 64 * MIB:
            writer.write(b"x" * 65536)
            pushed += 65536
            await writer.drain()

    async def main() -> None:
        far = Far()
        async with (
            origin(serve, None) as port,
            world(tmp_path, port, inspectors=[far], on_finding=on_finding, kind=Plaintext.HTTP) as made,
        ):
            reader, writer = await connected(made, None)
            writer.write(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
            async with asyncio.timeout(10):
                while not far.reads:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            assert far.reads <= 1 << 17
            assert pushed < 16 * MIB  # what the kernel's buffers take
            far.may_speak.set()
            await reader.readuntil(b"\r\n\r\n")
            left = 64 * MIB
            while left:
                left -= len(await asyncio.wait_for(reader.read(MIB), 10))
            assert far.reads == 64 * MIB

    asyncio.run(main())


def test_over_http2_a_slow_inspector_holds_back_one_stream_and_no_other(tmp_path: Path) -> None:
    async def main() -> None:
        ca, far = trustme.CA(), Far(wants=lambda part: "/bytes/" in part.url)
        async with (
            origin(Origin(), server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[far], on_finding=OnFinding.BLOCK) as made,
        ):
            asking = await h2_client(made, tmp_path)
            slow = asking.request(get(f"/bytes/{4 * MIB}", NAME))
            for number in range(3):
                quick = asking.request(get(f"/quick/{number}", NAME))
                await asking.until_ended(quick)
                await asyncio.sleep(0.1)
            assert far.reads <= MIB  # one stream's window
            assert not asking.bodies[slow]
            far.may_speak.set()
            await asking.until_ended(slow)
            assert len(asking.bodies[slow]) == far.reads == 4 * MIB

    asyncio.run(main())


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_finding_in_an_upload_gives_a_page_and_the_origin_no_complete_request(tmp_path: Path, version: str) -> None:
    async def main() -> None:
        ca, far = trustme.CA(), Far()
        far.may_speak.set()
        pages: Pages | Origin = Pages() if version == "1.1" else Origin()
        alpn = ("h2",) if version == "2" else ("http/1.1",)
        async with (
            origin(pages, server_context(ca, alpn=alpn)) as port,
            world(tmp_path, port, [ca], inspectors=[far], on_finding=OnFinding.BLOCK) as made,
        ):
            body = b"a SECRET".rjust(300_000)
            if version == "2":
                asking = await h2_client(made, tmp_path)
                head = [(":method", "POST"), *get("/up", NAME)[1:]]
                stream = asking.connection.get_next_available_stream_id()
                asking.connection.send_headers(stream, head)
                for _ in range(3):
                    asking.connection.send_data(stream, b"some of it")
                asking.connection.send_data(stream, b"a SECRET", end_stream=True)
                asking.flush()
                await asking.until_ended(stream)
                assert asking.headers[stream][":status"] == "403"
                assert b"Rule: the rule" in asking.bodies[stream]
                after = asking.request(get("/after", NAME))
                await asking.until_ended(after)
                assert asking.headers[after][":status"] == "200"
                assert len(pages.requests) == 1
            else:
                reader, writer = await connected(made, trusting(tmp_path))
                writer.write(f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
                assert b"Rule: the rule" in await asyncio.wait_for(reader.read(), 10)
                assert pages.requests == []
            assert Outcome.BLOCKED in [seen.outcome for seen in made.recorder.requests]

    asyncio.run(main())


@pytest.mark.parametrize("on_failure", OnFailure)
def test_an_inspector_that_hangs_is_the_policys_on_failure(tmp_path: Path, on_failure: OnFailure) -> None:
    async def main() -> None:
        pages, far = Pages(), Far()
        far.limit_s = 0.05
        async with (
            origin(pages, None) as port,
            world(tmp_path, port, inspectors=[far], on_failure=on_failure, kind=Plaintext.HTTP) as made,
        ):
            reader, writer = await connected(made, None)
            writer.write(f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\nbody".encode())
            status = (await reader.readline()).split()[1]
            assert status == (b"200" if on_failure is OnFailure.OPEN else b"403")
            assert len(pages.requests) == (on_failure is OnFailure.OPEN)
            assert "far: timeout, took longer than 0.050 s" in [seen.detail for seen in made.recorder.faults]
            assert far.abandons

    asyncio.run(main())


ERRORS = [ValueError(), GeneratorExit(), SystemExit(), KeyboardInterrupt(), asyncio.CancelledError()]


class _Raising(_FarReading):
    error: BaseException

    async def close(self) -> Sequence[Finding]:
        raise self.error


@pytest.mark.parametrize("error", [*ERRORS, BaseExceptionGroup("a group", [GeneratorExit()])], ids=repr)
def test_an_inspector_that_raises_whatever_there_is_is_the_policys_on_failure(
    tmp_path: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Far()
    far.may_speak.set()
    reading = _Raising(far)
    reading.error = error
    monkeypatch.setattr(far, "begin", lambda part: reading)

    async def main() -> None:
        pages = Pages()
        async with (
            origin(pages, None) as port,
            world(tmp_path, port, inspectors=[far], on_failure=OnFailure.CLOSED, kind=Plaintext.HTTP) as made,
        ):
            reader, writer = await connected(made, None)
            writer.write(f"POST / HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 4\r\n\r\nbody".encode())
            assert (await asyncio.wait_for(reader.readline(), 10)).split()[1] == b"403"
            assert pages.requests == []
            assert [seen.what for seen in made.recorder.faults] == ["inspector_failed"]

    asyncio.run(main())


class _Bare:
    """A layer's command, and what becomes of it."""

    def __init__(self) -> None:
        self.went_on: list[object] = []
        self.failed: list[Exception] = []

    async def after(self, error: BaseException | None, *, is_over: bool = False) -> None:
        async def work() -> None:
            if error is not None:
                raise error

        pauses = Pauses(asyncio.get_running_loop(), self.went_on.append, self.failed.append)
        pauses.begin(Wait(None), work())  # type: ignore[arg-type]
        if is_over:
            pauses.cancel()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [ValueError(), GeneratorExit(), asyncio.CancelledError()], ids=repr)
def test_what_is_waited_for_goes_on_only_if_it_comes_to_something(error: BaseException) -> None:
    """Whatever it raises, a cancellation too, is no leave to go on."""
    failing, going, over = _Bare(), _Bare(), _Bare()
    asyncio.run(failing.after(error))
    asyncio.run(going.after(None))
    asyncio.run(over.after(error, is_over=True))
    assert (failing.went_on, len(failing.failed)) == ([], 1)
    assert (len(going.went_on), going.failed) == (1, [])
    assert (over.went_on, over.failed) == ([], [])


def test_a_client_that_leaves_lets_go_of_the_inspection(tmp_path: Path) -> None:
    async def main() -> None:
        ca, far = trustme.CA(), Far()
        async with (
            origin(Origin(), server_context(ca, alpn=("h2",))) as port,
            world(tmp_path, port, [ca], inspectors=[far]) as made,
        ):
            asking = await h2_client(made, tmp_path)
            asking.request([(":method", "POST"), *get("/up", NAME)[1:]], b"body")
            async with asyncio.timeout(10):
                while not far.reads:
                    await asyncio.sleep(0.01)
            asking._writer.transport.abort()  # type: ignore[attr-defined]
            await made.end()
            assert far.abandons == 1

    asyncio.run(main())


@pytest.mark.parametrize("on_finding", OnFinding)
def test_other_plaintext_waits_as_well(tmp_path: Path, on_finding: OnFinding) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def main() -> None:
        ca, far = trustme.CA(), Far()
        async with (
            origin(echo, server_context(ca, alpn=())) as port,
            world(tmp_path, port, [ca], inspectors=[far], on_finding=on_finding) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path, alpn=()))
            writer.write(b"no HTTP at all\r\n")
            async with asyncio.timeout(10):
                while not far.reads:
                    await asyncio.sleep(0.01)
            with contextlib.suppress(TimeoutError):
                raise AssertionError(await asyncio.wait_for(reader.read(100), 0.2))
            far.may_speak.set()
            assert await asyncio.wait_for(reader.readline(), 10) == b"no HTTP at all\r\n"

    asyncio.run(main())
