"""Dialogues in plaintext up to TLS: relayed as they are, read by inspectors, let go of in time, or refused."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from engine_world import RESET, Word, World, connected, origin, world

from mitmsec.audit.event import BytesSeen, Outcome
from mitmsec.core.inspection import AwaitedInspection, Part
from mitmsec.core.messages import Plaintext, Upgrading
from mitmsec.core.model import Finding, OnFailure, OnFinding
from mitmsec.core.sniff import Protocol

GREETING = b"220 mail.origin.test ESMTP\r\n"
MYSQL_REQUEST = b"\x20\0\0\x01\x05\xae\xff\x19\0\0\0\x01\xff" + bytes(23)
HELLO = b"\x16\x03\x01\x00\x05hello"
type Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
type Play = Callable[[World, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Mail:
    """A server that keeps what it is told, and agrees to TLS with `answer`."""

    def __init__(self, answer: bytes = b"220 go\r\n", greeting: bytes = GREETING) -> None:
        self.answer, self.greeting = answer, greeting
        self.said = b""
        self.under_tls: asyncio.Queue[bytes] = asyncio.Queue()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.greeting)
        while line := await reader.readline():
            self.said += line
            if line == b"STARTTLS\r\n":
                writer.write(self.answer)
                if self.answer.startswith(b"220"):
                    self.under_tls.put_nowait(await reader.read(100))
            else:
                writer.write(b"250 " + line)


class Renamed(Word):
    """The policy calls it otherwise than the worker."""

    def __init__(self) -> None:
        self._names = iter(["here", "there"])

    @property
    def name(self) -> str:  # type: ignore[override]
        return next(self._names)


def play(tmp_path: Path, mail: Mail, part: Play, *, protocol: Protocol = Protocol.SMTP, **more: object) -> None:
    """`part` is the client's, in a world where dialogues are relayed."""

    async def main() -> None:
        async with (
            origin(mail, None) as port,
            world(tmp_path, port, kind=Plaintext.DIALOGUE, **more) as made,  # type: ignore[arg-type]
        ):
            made.protocol = protocol
            reader, writer = await connected(made, None)
            try:
                await asyncio.wait_for(part(made, reader, writer), 20)
            finally:
                writer.close()

    asyncio.run(main())


async def malformed(made: World, reader: asyncio.StreamReader, why: str) -> None:
    with pytest.raises(ConnectionResetError):
        await reader.read()
    end = await made.end()
    assert (end.outcome, end.reset) == (Outcome.MALFORMED, True)
    assert why in end.error


def test_a_dialogue_is_let_go_of_where_tls_begins_and_the_hello_lies_unread(tmp_path: Path) -> None:
    mail = Mail()

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == GREETING
        writer.write(b"EHLO me\r\n")
        assert await reader.readline() == b"250 EHLO me\r\n"
        writer.write(b"STARTTLS\r\n")
        assert await reader.readline() == b"220 go\r\n"
        writer.write(HELLO)
        end = await made.upgrade()
        assert end == Upgrading(flow="flow-1", bytes_sent=19, bytes_received=len(GREETING) + 13 + 8)
        client, server = made.taken_back(end.flow)
        assert await asyncio.get_running_loop().sock_recv(client, 100) == HELLO
        await asyncio.get_running_loop().sock_sendall(server, b"by somebody else")
        assert await mail.under_tls.get() == b"by somebody else"
        for sock in (client, server):
            sock.close()

    play(tmp_path, mail, part)
    assert mail.said == b"EHLO me\r\nSTARTTLS\r\n"


def test_a_hello_right_behind_mysqls_request_is_left_unread(tmp_path: Path) -> None:
    """Both lie in one segment, and no answer separates them."""
    mail = Mail(greeting=b"J\0\0\0\x0a8.0.36\0" + bytes(60) + b"\n")

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(MYSQL_REQUEST + HELLO)
        end = await made.upgrade()
        assert end.bytes_sent == len(MYSQL_REQUEST)
        client, server = made.taken_back(end.flow)
        assert await asyncio.get_running_loop().sock_recv(client, 100) == HELLO
        for sock in (client, server):
            sock.close()

    play(tmp_path, mail, part, protocol=Protocol.MYSQL)


def test_a_dialogue_without_an_upgrade_goes_on_to_its_end(tmp_path: Path) -> None:

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"STARTTLS\r\n")
        assert await reader.readline() == b"454 not now\r\n"
        writer.write(b"NOOP\r\n")
        assert await reader.readline() == b"250 NOOP\r\n"
        writer.write_eof()
        assert await reader.read() == b""
        end = await made.end()
        assert (end.outcome, end.bytes_sent, end.tls, end.reset) == (Outcome.COMPLETED, 16, None, False)

    play(tmp_path, Mail(answer=b"454 not now\r\n"), part)


@pytest.mark.parametrize("sent", [b"STARTTLS\r\nMAIL FROM:<me@evil.test>\r\n", b"STARTTLS\r\n" + HELLO])
def test_what_a_client_pipelines_behind_starttls_never_reaches_the_origin(tmp_path: Path, sent: bytes) -> None:
    mail = Mail()

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(sent)
        await malformed(made, reader, "smtp: the client goes on behind its request for TLS")

    play(tmp_path, mail, part)
    assert mail.said == b""


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"220 go\r\n250 injected\r\n", "the server goes on behind its consent"),
        (b"what?\r\n", "answered with something else"),
        (b"\x16\x03\x03\x00\x02\x02\x28\n", "answered with something else"),
    ],
)
def test_an_origin_that_says_more_or_else_than_its_consent_is_cut_off(tmp_path: Path, answer: bytes, why: str) -> None:
    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"STARTTLS\r\n")
        await malformed(made, reader, why)

    play(tmp_path, Mail(answer=answer), part)


def test_tls_that_a_client_hides_from_us_in_a_pipeline_ends_where_its_server_begins_it(tmp_path: Path) -> None:
    """Many servers empty their buffer before TLS, so what stands behind STARTTLS does not disturb them."""
    answer = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03" + bytes(111)

    async def purges(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        assert await reader.read(100) == b"NOOP\r\nSTARTTLS\r\nX"
        writer.write(b"250 ok\r\n220 go\r\n")
        assert await reader.read(100) == HELLO
        writer.write(answer)

    async def main() -> None:
        async with origin(purges, None) as port, world(tmp_path, port, kind=Plaintext.DIALOGUE) as made:
            made.protocol = Protocol.SMTP
            reader, writer = await connected(made, None)
            assert await reader.readline() == GREETING
            writer.write(b"NOOP\r\nSTARTTLS\r\nX")
            assert await reader.readexactly(16) == b"250 ok\r\n220 go\r\n"
            writer.write(HELLO)
            await malformed(made, reader, "the server begins TLS, and nobody was seen to agree to it")
            writer.close()

    asyncio.run(main())


def test_an_endless_greeting_reaches_the_client_and_no_more_of_it_than_the_client_takes(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"220-" + b"x" * 65_532)
            await writer.drain()

    async def main() -> None:
        async with origin(endless, None) as port, world(tmp_path, port, kind=Plaintext.DIALOGUE) as made:
            made.protocol = Protocol.SMTP
            reader, writer = await connected(made, None)
            await reader.readexactly(16 << 20)
            writer.transport.abort()
            end = await made.end()
            assert (end.outcome, end.error) == (Outcome.COMPLETED, "the client reset the connection")
            assert 16 << 20 <= end.bytes_received < 32 << 20

    asyncio.run(main())


def test_an_origin_that_resets_a_dialogue_is_passed_on(tmp_path: Path) -> None:
    async def gone(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING)
        await reader.readline()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    async def main() -> None:
        async with origin(gone, None) as port, world(tmp_path, port, kind=Plaintext.DIALOGUE) as made:
            made.protocol = Protocol.SMTP
            reader, writer = await connected(made, None)
            await reader.readline()
            writer.write(b"QUIT\r\n")
            assert (await made.end()).outcome == Outcome.ORIGIN_RESET
            writer.close()

    asyncio.run(main())


@pytest.mark.parametrize("on_finding", OnFinding)
def test_inspectors_read_a_dialogue_in_both_directions(tmp_path: Path, on_finding: OnFinding) -> None:
    mail, word = Mail(), Word(word=b"250 SECRET")

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SECRET\r\n")
        if on_finding is not OnFinding.ALERT:  # nothing can be masked here
            with pytest.raises(ConnectionResetError):
                await reader.read()
        else:
            assert await reader.readline() == b"250 SECRET\r\n"
            writer.write_eof()
        end = await made.end()
        assert end.outcome == (Outcome.COMPLETED if on_finding is OnFinding.ALERT else Outcome.BLOCKED)
        (finding,) = made.recorder.findings
        assert (finding.flow, finding.finding.location) == ("flow-1", "response.stream")

    play(tmp_path, mail, part, inspectors=[word], on_finding=on_finding)
    assert word.content("stream", sent=True) == [b"SECRET\r\n"]


def test_inspectors_have_read_a_dialogue_to_its_end_before_tls_begins(tmp_path: Path) -> None:
    word = Word(word=b"220 go")

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"STARTTLS\r\n")
        await reader.readline()
        end = await made.upgrade()
        assert len(made.recorder.findings) == 1
        for sock in made.taken_back(end.flow):
            sock.close()

    play(tmp_path, Mail(), part, inspectors=[word])


def test_an_inspector_that_is_missing_closes_a_dialogue_where_failures_close(tmp_path: Path) -> None:
    mail = Mail()

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with pytest.raises(ConnectionResetError):
            await reader.read()
        end = await made.end()
        assert end.outcome == Outcome.BLOCKED

    play(tmp_path, mail, part, inspectors=[Renamed()], on_failure=OnFailure.CLOSED)


class Far(Word):
    """Somebody who has to be waited for."""

    limit_s, limit_bytes = 5.0, 1 << 20

    def begin(self, part: Part) -> AwaitedInspection | None:
        return Never()


class Never:
    """Reads, and never finds anything."""

    async def feed(self, data: bytes) -> Sequence[Finding]:
        return ()

    async def close(self) -> Sequence[Finding]:
        return ()

    def abandon(self) -> None:
        return


@pytest.mark.parametrize("protocol", [Protocol.SMTP, Protocol.FTP])
@pytest.mark.parametrize("on_failure", OnFailure)
def test_a_dialogue_that_has_no_ends_for_an_inspector_to_hear_falls_the_way_the_policy_says(
    tmp_path: Path, on_failure: OnFailure, protocol: Protocol
) -> None:
    """Mail has them."""

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_told = protocol is Protocol.FTP
        if on_failure is OnFailure.CLOSED and is_told:
            with pytest.raises(ConnectionResetError):
                await reader.read()
        else:
            assert await reader.readline() == GREETING
            writer.write(b"NOOP\r\n")
            assert await reader.readline() == b"250 NOOP\r\n"
            writer.write_eof()
            assert await reader.read() == b""
        await made.end()
        assert [(fault.what, fault.failed) for fault in made.recorder.faults] == [
            ("not_inspected", on_failure)
        ] * is_told

    more = {"on_finding": OnFinding.BLOCK, "on_failure": on_failure}
    play(tmp_path, Mail(), part, inspectors=[Far()], protocol=protocol, **more)


def test_a_dialogue_that_is_awaited_goes_on_under_tls_once_all_was_read(tmp_path: Path) -> None:
    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"STARTTLS\r\n")
        assert await reader.readline() == b"220 go\r\n"
        end = await made.upgrade()
        for sock in made.taken_back(end.flow):
            sock.close()

    play(tmp_path, Mail(), part, inspectors=[Far()])


def test_a_captured_dialogue_is_recorded_as_it_passes_and_waits_for_the_recorder(tmp_path: Path) -> None:
    mail = Mail()

    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        made.recorder.congested = True
        writer.write(b"NOOP\r\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.1)
        made.recorder.congested = False
        made.recorder.relief.set()
        assert await reader.readline() == b"250 NOOP\r\n"
        seen = made.recorder.of(BytesSeen)
        assert b"".join(one.data for one in seen if one.sent) == b"NOOP\r\n"
        assert b"".join(one.data for one in seen if not one.sent) == GREETING + b"250 NOOP\r\n"

    play(tmp_path, mail, part, capture=True)


def test_a_protocol_that_never_goes_on_under_tls_is_a_fault(tmp_path: Path) -> None:
    async def part(made: World, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = await made.end()
        assert end.outcome == Outcome.FAULT

    play(tmp_path, Mail(), part, protocol=Protocol.SSH)
