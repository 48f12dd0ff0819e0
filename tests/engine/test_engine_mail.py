"""Mail through the engine, in the clear and in TLS: parts are read decoded, and what is refused never arrives."""

from __future__ import annotations

import asyncio
import contextlib
import smtplib
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, Envelope
from engine_world import NAME, Word, World, connected, origin, server_context, trusting, world

from mitmsec.audit.event import Outcome
from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.messages import Plaintext
from mitmsec.core.model import Direction, Finding, OnFailure, OnFinding
from mitmsec.core.sniff import Protocol
from mitmsec.engine.stream import UNHEARD


class Mailbox:
    """What a real server has been given."""

    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def handle_DATA(  # noqa: N802 -- aiosmtpd calls it so
        self, _server: Any, _session: Any, envelope: Envelope
    ) -> str:
        assert isinstance(envelope.content, bytes)
        self.mails.append(envelope.content)
        return "250 kept"


class Far(Word):
    """Says at the end of a part whether the word is in it, and is awaited."""

    limit_s, limit_bytes = 5.0, 1 << 20

    def __init__(self) -> None:
        super().__init__("far")
        self.ends = 0

    def begin(self, part: Part) -> FarReading:
        return FarReading(self, self.open(part))


class FarReading:
    def __init__(self, far: Far, reading: Any) -> None:
        self._far, self._reading, self._found = far, reading, list[Finding]()

    async def feed(self, data: bytes) -> Sequence[Finding]:
        await asyncio.sleep(0)
        self._found += self._reading.feed(data)
        return ()

    async def close(self) -> Sequence[Finding]:
        await asyncio.sleep(0.01)
        self._far.ends += 1
        return self._found

    def abandon(self) -> None:
        return


def mail(text: str = "fine", attached: bytes = b"nothing", subject: str = "hello") -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@a.test", "b@b.test", subject
    made.set_content(text)
    made.add_attachment(attached, maintype="application", subtype="octet-stream", filename="report.bin")
    made.set_boundary("--of-this-mail")
    return made


@contextlib.asynccontextmanager
async def mail_world(tmp_path: Path, *, tls: bool, **more: Any) -> AsyncIterator[tuple[World, Mailbox]]:
    """A real mail server behind the engine: dialogues in the clear, or TLS from the beginning."""
    ca, box, loop = trustme.CA(), Mailbox(), asyncio.get_running_loop()
    context = server_context(ca, alpn=()) if tls else None
    server = await loop.create_server(lambda: SMTP(box, loop=loop), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    kind = Plaintext.TLS if tls else Plaintext.DIALOGUE
    async with world(tmp_path, port, [ca], kind=kind, **more) as made:
        made.protocol = None if tls else Protocol.SMTP
        try:
            yield made, box
        finally:
            server.close()


def client(made: World, tmp_path: Path, *, tls: bool) -> smtplib.SMTP:
    if not tls:
        return smtplib.SMTP("127.0.0.1", made.port, timeout=20)
    context = ssl.create_default_context(cafile=tmp_path / "root.pem")
    context.check_hostname = False
    return smtplib.SMTP_SSL("127.0.0.1", made.port, context=context, timeout=20)


def send(made: World, tmp_path: Path, *mails: EmailMessage, tls: bool) -> list[tuple[int, bytes]]:
    """By a real client, one after the other; what it is told where that is no success."""
    told: list[tuple[int, bytes]] = []
    with contextlib.suppress(smtplib.SMTPServerDisconnected), client(made, tmp_path, tls=tls) as session:
        for one in mails:
            try:
                session.send_message(one)
            except smtplib.SMTPDataError as error:
                told.append((error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b""))
    return told


both = pytest.mark.parametrize("tls", [False, True])


@both
def test_what_is_in_an_attachment_is_found_decoded_and_the_mail_arrives_as_it_is(tmp_path: Path, tls: bool) -> None:
    async def main() -> None:
        word, sent = Word(), mail("plain SECRET", b"\0" * 5000 + b"a SECRET", "=?utf-8?B?U0VDUkVU?=")
        async with mail_world(tmp_path, tls=tls, inspectors=[word]) as (made, box):
            assert await asyncio.to_thread(send, made, tmp_path, mail(), sent, tls=tls) == []
            assert [seen.finding.location for seen in made.recorder.findings] == [
                "request.headers in preamble of mail 2",
                "request.body in part 1 of mail 2",
                "request.body in report.bin of mail 2",
            ]
            assert len(box.mails) == 2
            assert box.mails[1].replace(b"\r\n", b"\n").rstrip() == bytes(sent).rstrip()
            parts = [part for part, _ in word.parts if part.kind is PartKind.BODY and part.file_name]
            assert [(part.file_name, part.content_type) for part in parts] == [
                ("report.bin", "application/octet-stream")
            ] * 2
            said = b"".join(word.content("stream", sent=True))
            assert b"data\r\n" in said
            assert b"Subject" not in said
            assert (await made.end()).outcome == Outcome.COMPLETED

    asyncio.run(main())


@both
@pytest.mark.parametrize("on_finding", [OnFinding.BLOCK, OnFinding.REDACT])
@pytest.mark.parametrize("filler_bytes", [10, 1 << 20])
def test_mail_that_is_refused_never_arrives_and_its_sender_is_told(
    tmp_path: Path, tls: bool, on_finding: OnFinding, filler_bytes: int
) -> None:
    async def main() -> None:
        bad = mail(attached=b"SECRET" + bytes(filler_bytes))
        async with mail_world(tmp_path, tls=tls, inspectors=[Word()], on_finding=on_finding) as (made, box):
            ((code, text),) = await asyncio.to_thread(send, made, tmp_path, mail(), bad, tls=tls)
            assert code == 554
            assert text == b"5.7.1 Blocked by mitmsec: word: the word. Rule: the rule. Connection: flow-1"
            assert (await made.end()).outcome == Outcome.BLOCKED
            assert len(box.mails) == 1
            assert [seen.verdict for seen in made.recorder.findings] == [OnFinding.BLOCK]

    asyncio.run(main())


@both
def test_who_has_to_be_awaited_is_asked_about_each_part_and_its_end_waits(tmp_path: Path, tls: bool) -> None:
    async def main() -> None:
        far = Far()
        async with mail_world(tmp_path, tls=tls, inspectors=[far], on_finding=OnFinding.BLOCK) as (made, box):
            told = await asyncio.to_thread(send, made, tmp_path, mail(), mail(attached=b"SECRET"), tls=tls)
            assert [code for code, _ in told] == [554]
            assert len(box.mails) == 1
            assert {part.kind for part, _ in far.parts} == {PartKind.BODY}  # commands hold no files
            assert far.ends >= 4
            assert made.recorder.faults == []

    asyncio.run(main())


def test_somebody_from_outside_hears_nothing_of_our_rules(tmp_path: Path) -> None:
    async def main() -> None:
        async with mail_world(tmp_path, tls=False, inspectors=[Word()], on_finding=OnFinding.BLOCK) as (made, _):
            made.direction = Direction.INBOUND
            told = await asyncio.to_thread(send, made, tmp_path, mail("SECRET"), tls=False)
            assert told == [(554, b"5.7.1 Message refused")]

    asyncio.run(main())


# --- by hand: what no mail program says -------------------------------------------------------------------------------
class Scripted:
    """Says yes to everything, and keeps what it is told."""

    def __init__(self, *, greets: bool = True) -> None:
        self.said, self.greets = b"", greets

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.greets:
            writer.write(b"220 by hand\r\n")
        while data := await reader.read(65536):
            self.said += data
            for line in data.split(b"\r\n")[:-1]:
                if line.startswith(b"EHLO"):
                    writer.write(b"250-hand\r\n250 CHUNKING\r\n")
                elif line == b"DATA":
                    writer.write(b"354 go\r\n")
                elif line.startswith((b"MAIL", b"RCPT", b"NOOP")):
                    writer.write(b"250 ok\r\n")
                elif line == b".":
                    writer.write(b"250 kept\r\n")


@contextlib.asynccontextmanager
async def by_hand(
    tmp_path: Path, server: Any, *, tls: bool = False, **more: Any
) -> AsyncIterator[tuple[World, asyncio.StreamReader, asyncio.StreamWriter]]:
    ca = trustme.CA()
    kind = Plaintext.TLS if tls else Plaintext.DIALOGUE
    async with (
        asyncio.timeout(20),
        origin(server, server_context(ca, alpn=()) if tls else None) as port,
        world(tmp_path, port, [ca], kind=kind, **more) as made,
    ):
        made.protocol = None if tls else Protocol.SMTP
        reader, writer = await connected(made, trusting(tmp_path) if tls else None)
        try:
            yield made, reader, writer
        finally:
            writer.close()


OPENING = b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\n"


def test_chunks_in_a_pipeline_are_refused_whole(tmp_path: Path) -> None:
    async def main() -> None:
        server = Scripted()
        more = {"inspectors": [Word()], "on_finding": OnFinding.BLOCK}
        async with by_hand(tmp_path, server, **more) as (made, reader, writer):
            assert await reader.readline() == b"220 by hand\r\n"
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            writer.write(OPENING + b"BDAT 16 LAST\r\nSubject: SECRET\n")
            refusals = await reader.read()
            assert [line[:9] for line in refusals.splitlines()] == [b"554 5.7.1"] * 3
            assert (await made.end()).outcome == Outcome.BLOCKED
            assert b"BDAT" not in server.said

    asyncio.run(main())


def test_where_another_mail_has_no_answer_yet_there_is_a_reset(tmp_path: Path) -> None:
    async def main() -> None:
        more = {"inspectors": [Word()], "on_finding": OnFinding.BLOCK}
        async with by_hand(tmp_path, Scripted(), **more) as (made, reader, writer):
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            writer.write(b"BDAT 2 LAST\r\nok" + OPENING + b"BDAT 6 LAST\r\nSECRET")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert (await made.end()).outcome == Outcome.BLOCKED

    asyncio.run(main())


def test_mail_after_starttls_is_known_by_what_the_client_says(tmp_path: Path) -> None:
    async def main() -> None:
        server = Scripted(greets=False)
        more = {"inspectors": [Word()], "on_finding": OnFinding.BLOCK}
        async with by_hand(tmp_path, server, tls=True, **more) as (made, reader, writer):
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            writer.write(OPENING + b"DATA\r\n")
            await reader.readuntil(b"354 go\r\n")
            writer.write(b"Content-Transfer-Encoding: base64\r\n\r\nU0VD\r\nUkVU\r\n.\r\n")
            assert (await reader.read()).startswith(b"554 5.7.1")
            assert (await made.end()).outcome == Outcome.BLOCKED
            assert b"U0VD" not in server.said

    asyncio.run(main())


@pytest.mark.parametrize("on_failure", OnFailure)
def test_an_end_that_not_all_servers_see_is_as_the_policy_says(tmp_path: Path, on_failure: OnFailure) -> None:
    async def main() -> None:
        server = Scripted()
        async with by_hand(tmp_path, server, inspectors=[Word()], on_failure=on_failure) as (made, reader, writer):
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            writer.write(OPENING + b"DATA\r\n")
            await reader.readuntil(b"354 go\r\n")
            writer.write(b"hidden\n.\r\nMAIL FROM:<evil>\r\n")
            if on_failure is OnFailure.CLOSED:
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                assert b"evil" not in server.said
            else:
                assert await reader.readline() == b"250 ok\r\n"
            (fault,) = made.recorder.faults
            assert (fault.what, fault.failed) == ("not_inspected", on_failure)
            assert fault.detail == "SMTP: a line with nothing but a dot, between bare CR or LF"

    asyncio.run(main())


def test_what_cannot_be_inspected_is_refused_for_now_where_failures_close(tmp_path: Path) -> None:
    async def main() -> None:
        more = {"inspectors": [Word()], "on_failure": OnFailure.CLOSED}
        async with by_hand(tmp_path, Scripted(), **more) as (made, reader, writer):
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            writer.write(OPENING + b"DATA\r\n")
            await reader.readuntil(b"354 go\r\n")
            writer.write(b"Content-Transfer-Encoding: x-uu\r\n\r\nbegin\r\n.\r\n")
            assert (await reader.read()).startswith(b"451 4.7.1 ")
            (fault,) = made.recorder.faults
            assert fault.detail == "message/rfc822: its transfer encoding is not known here"

    asyncio.run(main())


@both
def test_a_client_that_leaves_in_the_middle_of_what_is_refused_ends_blocked(tmp_path: Path, tls: bool) -> None:
    async def main() -> None:
        more = {"inspectors": [Word()], "on_finding": OnFinding.BLOCK}
        async with by_hand(tmp_path, Scripted(), tls=tls, **more) as (made, reader, writer):
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            writer.write(OPENING + b"DATA\r\n")
            await reader.readuntil(b"354 go\r\n")
            writer.write(b"\r\nSECRET\r\nand more\r\n")
            while not made.recorder.findings:
                await asyncio.sleep(0.01)
            writer.close()
            assert (await made.end()).outcome == Outcome.BLOCKED

    asyncio.run(main())


class Slow(Word):
    """Takes a millisecond for whatever it is shown."""

    def open(self, part: Part) -> Any:
        reading = super().open(part)
        feed = reading.feed

        def slowly(data: bytes) -> Sequence[Finding]:
            end_s = time.process_time() + 0.001
            while time.process_time() < end_s:
                pass
            return feed(data)

        return SimpleNamespace(feed=slowly, close=reading.close)


def test_a_message_in_many_small_chunks_holds_nobody_up(tmp_path: Path) -> None:
    async def main() -> None:
        longest_s, server, slow = 0.0, Scripted(), Slow()

        async def beat() -> None:
            nonlocal longest_s
            before_s = time.process_time()
            while True:
                await asyncio.sleep(0)
                longest_s = max(longest_s, time.process_time() - before_s)
                before_s = time.process_time()

        async with by_hand(tmp_path, server, inspectors=[slow]) as (_, reader, writer):
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            beating = asyncio.create_task(beat())
            writer.write(OPENING + b"BDAT 2\r\n\r\n" + b"BDAT 2\r\nx\n" * 200 + b"BDAT 0 LAST\r\nNOOP\r\n")
            for _ in range(3):
                assert await reader.readline() == b"250 ok\r\n"
            beating.cancel()
            assert 0 < longest_s < 0.15
            assert slow.content("body", sent=True) == [b"x\n" * 200]

    asyncio.run(main())


@both
@pytest.mark.parametrize("on_failure", OnFailure)
def test_what_passes_for_mail_and_is_none_is_read_by_who_has_to_be_awaited(
    tmp_path: Path, tls: bool, on_failure: OnFailure
) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"NOOP\r\n")
        writer.write(b"\0")
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass

    async def main() -> None:
        far = Far()
        more = {"inspectors": [far], "on_finding": OnFinding.BLOCK, "on_failure": on_failure}
        async with by_hand(tmp_path, answers, tls=tls, **more) as (made, reader, writer):
            writer.write(b"NOOP\r\n")
            if on_failure is OnFailure.OPEN:
                assert await reader.readexactly(1) == b"\0"
                writer.write(b"SECRET")
                writer.close()
                assert b"".join(far.content("stream", sent=False)) == b"\0"
            assert (await made.end()).outcome == Outcome.BLOCKED
            told = [UNHEARD] if tls else ["SMTP: an answer that is none", UNHEARD]  # in TLS it only seemed to be mail
            assert [fault.detail for fault in made.recorder.faults] == told[
                : 1 if on_failure is OnFailure.CLOSED else 2
            ]
            assert len(made.recorder.findings) == (on_failure is OnFailure.OPEN)
            if on_failure is OnFailure.OPEN:
                assert b"".join(far.content("stream", sent=True)) == b"NOOP\r\nSECRET"

    asyncio.run(main())


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("on_failure", OnFailure)
def test_more_than_anybody_says_around_a_mail_is_read_by_who_has_to_be_awaited(
    tmp_path: Path, sent: bool, on_failure: OnFailure
) -> None:
    much = (b"NOOP " if sent else b"250-") + b"x" * 16000 + b"\r\n"

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 by hand\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"EHLO me\r\n")
            writer.write(b"" if sent else much * 5)
            writer.write(b"250 hand\r\n")
            await reader.read()

    async def main() -> None:
        far = Far()
        more = {"inspectors": [far], "on_finding": OnFinding.BLOCK, "on_failure": on_failure}
        async with by_hand(tmp_path, answers, **more) as (made, reader, writer):
            said = b"EHLO me\r\n" + (much * 5 if sent else b"")
            writer.write(said)
            writer.write_eof()
            heard = b""
            with contextlib.suppress(ConnectionResetError):
                heard = await reader.read()
            is_open = on_failure is OnFailure.OPEN
            assert (await made.end()).outcome == (Outcome.COMPLETED if is_open else Outcome.BLOCKED)
            assert [fault.detail for fault in made.recorder.faults] == [UNHEARD]
            seen = b"".join(far.content("stream", sent=sent))
            assert seen == ((said if sent else heard) if is_open else b"")
            assert len(seen) > 65536 or not is_open

    asyncio.run(main())


def test_many_mails_are_not_much_said_around_one(tmp_path: Path) -> None:
    async def main() -> None:
        far = Far()
        more = {"inspectors": [far], "on_failure": OnFailure.CLOSED}
        async with by_hand(tmp_path, Scripted(), **more) as (made, reader, writer):
            writer.write(b"EHLO me\r\n")
            await reader.readuntil(b"CHUNKING\r\n")
            for _ in range(3):
                writer.write(b"NOOP " + b"x" * 15000 + b"\r\n" + OPENING * 500 + b"BDAT 2 LAST\r\nok")
                for _ in range(1001):
                    assert await reader.readline() == b"250 ok\r\n"
            assert made.recorder.faults == []
            assert far.ends == 3

    asyncio.run(main())


# --- what is no mail --------------------------------------------------------------------------------------------------
class Sink:
    """Keeps what it is told, and how that ended."""

    def __init__(self) -> None:
        self.said, self.has_ended = b"", False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.said += data
            self.has_ended = True
            writer.write(b"thanks")
        except ConnectionError:
            pass


@both
@pytest.mark.parametrize("is_bad", [False, True])
def test_the_end_of_a_stream_waits_for_who_has_to_be_awaited(tmp_path: Path, tls: bool, is_bad: bool) -> None:
    async def main() -> None:
        sink, far, ca = Sink(), Far(), trustme.CA()
        async with (
            asyncio.timeout(20),
            origin(sink, server_context(ca, alpn=()) if tls else None) as port,
            world(
                tmp_path, port, [ca], kind=Plaintext.TLS if tls else Plaintext.DIALOGUE, inspectors=[far],
                on_finding=OnFinding.BLOCK,
            ) as made,
        ):  # fmt: skip
            made.protocol = None if tls else Protocol.FTP
            reader, writer = await connected(made, trusting(tmp_path) if tls else None)
            writer.write(b"\x01a file " + b"SECRET" * is_bad)
            writer.close() if tls else writer.write_eof()
            if is_bad:
                assert (await made.end()).outcome == Outcome.BLOCKED
                assert not sink.has_ended
            else:
                assert tls or await reader.read() == b"thanks"
                assert (await made.end()).outcome == Outcome.COMPLETED
                assert sink.has_ended
            assert [fault.detail for fault in made.recorder.faults] == [UNHEARD]
            writer.close()

    asyncio.run(main())


def test_a_server_that_greets_otherwise_is_read_as_a_stream_by_all(tmp_path: Path) -> None:
    async def greets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK hello\r\n")
        assert await reader.readline() == b"a LOGOUT\r\n"
        writer.write(b"* BYE SECRET\r\n")

    async def main() -> None:
        ca, far, word = trustme.CA(), Far(), Word()
        async with (
            asyncio.timeout(20),
            origin(greets, server_context(ca, alpn=())) as port,
            world(tmp_path, port, [ca], inspectors=[far, word]) as made,
        ):
            reader, writer = await connected(made, trusting(tmp_path))
            assert await reader.readline() == b"* OK hello\r\n"
            writer.write(b"a LOGOUT\r\n")
            assert await reader.read() == b"* BYE SECRET\r\n"
            writer.close()
            await made.end()
            assert {seen.finding.detector for seen in made.recorder.findings} == {"far", "word"}
            for one in (far, word):
                assert b"".join(one.content("stream", sent=False)) == b"* OK hello\r\n* BYE SECRET\r\n"
                assert b"".join(one.content("stream", sent=True)) == b"a LOGOUT\r\n"
            assert made.recorder.faults == []

    asyncio.run(main())


def test_a_server_that_stops_speaking_mail_ends_what_is_refused_with_a_reset(tmp_path: Path) -> None:
    async def main() -> None:
        is_refused = asyncio.Event()

        async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hello\r\n")
            await reader.readuntil(b"DATA\r\n")
            writer.write(b"250 mx\r\n250 ok\r\n354 go\r\n")
            await is_refused.wait()
            writer.write(b"nonsense\r\n")
            await reader.read()

        more = {"inspectors": [Word()], "on_finding": OnFinding.BLOCK}
        async with by_hand(tmp_path, answers, **more) as (made, reader, writer):
            writer.write(b"EHLO me\r\nMAIL FROM:<a>\r\nDATA\r\n")
            await reader.readuntil(b"354 go\r\n")
            writer.write(b"\r\nSECRET\r\nmore\r\n")
            while not made.recorder.findings:
                await asyncio.sleep(0.01)
            is_refused.set()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert (await made.end()).outcome == Outcome.BLOCKED
            assert made.recorder.faults == []

    asyncio.run(main())


class AtTheEnd(Word):
    """Says what it has found once the part is over, as those do that read files as a whole."""

    def open(self, part: Part) -> Any:
        return _AtTheEnd(super().open(part))


class _AtTheEnd:
    def __init__(self, reading: Any) -> None:
        self._reading, self._found = reading, list[Finding]()

    def feed(self, data: bytes) -> Sequence[Finding]:
        self._found += self._reading.feed(data)
        return ()

    def close(self) -> Sequence[Finding]:
        return self._found


@both
def test_a_file_on_a_connection_of_its_own_has_no_end_in_order_where_something_is_found_in_it(
    tmp_path: Path, tls: bool
) -> None:
    """As FTP sends them."""

    async def main() -> None:
        sink, ca = Sink(), trustme.CA()
        async with (
            asyncio.timeout(20),
            origin(sink, server_context(ca, alpn=()) if tls else None) as port,
            world(
                tmp_path, port, [ca], kind=Plaintext.TLS if tls else Plaintext.DIALOGUE, inspectors=[AtTheEnd()],
                on_finding=OnFinding.BLOCK,
            ) as made,
        ):  # fmt: skip
            made.protocol = None if tls else Protocol.FTP
            _, writer = await connected(made, trusting(tmp_path) if tls else None)
            writer.write(b"\x01a file: SECRET")
            writer.close() if tls else writer.write_eof()
            assert (await made.end()).outcome == Outcome.BLOCKED
            assert not sink.has_ended
            assert made.recorder.faults == []
            writer.close()

    asyncio.run(main())


def test_names_are_for_the_host_that_was_decided(tmp_path: Path) -> None:
    async def main() -> None:
        word = Word()
        async with mail_world(tmp_path, tls=True, inspectors=[word]) as (made, _):
            await asyncio.to_thread(send, made, tmp_path, mail(), tls=True)
            assert {part.host for part, _ in word.parts} == {NAME}

    asyncio.run(main())
