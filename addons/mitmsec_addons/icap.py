"""The inspector `icap`: what an ICAP server (RFC 3507) says of requests and responses.

    [inspector.icap]
    socket = "icap://127.0.0.1:1344/virus_scan"

    OPTIONS ──► how much it wants to preview                                   (once)
    REQMOD | RESPMOD, the head, a preview ──► 100: the rest follows · 204: it has nothing against it · 200: its answer
                      … the rest, as it comes ──► 204 · 200

It is asked for its judgement alone: what it would have instead goes nowhere. That it found something it says in a field
(X-Infection-Found, X-Violations-Found) or by refusing: an answer of its own with a status of 400 or more.
A worker may not connect anywhere: its connections to `address` are made by others, and lent (`connect`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from mitmsec.core.inspection import Part, Unread, place
from mitmsec.core.model import Finding, Severity, Value
from mitmsec_addons.dialling import Connect, dial, endpoint

HEAD_LIMIT_BYTES = 1 << 16
PREVIEW_LIMIT_BYTES = 1 << 16
_URI = re.compile(r"icap://([^/\s]+)(/[!-~]*)")
_THREAT = re.compile(r"Threat=([^;]*)")
_REFUSES = 400


class Answer(Value, frozen=True):
    """An ICAP answer's status, its fields in lower case, and the status of the HTTP response in it, or 0."""

    status: int
    fields: dict[str, str]
    http_status: int = 0


class Icap:
    """Asks about bodies and messages. Raises ValueError unless `words` is one URI."""

    name = "icap"
    limit_s = 60.0
    limit_bytes = 1 << 30

    def __init__(self, words: tuple[str, ...], connect: Connect = dial) -> None:
        found = _URI.fullmatch(words[0]) if len(words) == 1 else None
        if found is None:
            raise ValueError("icap needs the URI of a service: icap://127.0.0.1:1344/virus_scan")
        (self.uri,) = words
        self.address = found[1]
        endpoint(self.address)
        self.connect = connect
        self.preview_bytes: int | None = None
        """What the service says that it wants; None: it has not been asked."""

    def begin(self, part: Part) -> IcapInspection:
        """Every body and every stream is asked about."""
        return IcapInspection(self, part)


class IcapInspection:
    """One part being sent. Holds a preview, and what the connection has not taken yet."""

    def __init__(self, icap: Icap, part: Part) -> None:
        self._icap, self._part = icap, part
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._preview: bytearray | None = bytearray()  # until it is sent
        self._answer: asyncio.Task[Answer] | None = None  # that is awaited while the rest is sent
        self._is_over = False

    async def feed(self, data: bytes) -> Sequence[Finding | Unread]:
        """What it says, once it says something. Raises OSError, EOFError, ValueError."""
        if self._is_over:
            return ()
        if self._preview is not None:
            if (refusal := await self._open()) is not None:
                return self._said(refusal)
            self._preview += data
            if len(self._preview) <= (self._icap.preview_bytes or 0):
                return ()
            return await self._send_preview(self._preview)
        return await self._send(_chunk(data))

    async def close(self) -> Sequence[Finding | Unread]:
        """What it says at the end. Raises as `feed`."""
        if self._is_over or self._writer is None:
            return ()
        if self._preview is not None:
            self._writer.write(self._head(len(self._preview)) + _chunk(self._preview) + b"0; ieof\r\n\r\n")
            return self._said(await self._read())
        told = await self._send(b"0\r\n\r\n")
        if not self._is_over and self._answer is not None:
            told = self._said(await self._answer)
        return told

    def abandon(self) -> None:
        """Let go of the connection."""
        self._is_over = True
        if self._answer is not None:
            self._answer.cancel()
        if self._writer is not None:
            self._writer.transport.abort()

    async def _open(self) -> Answer | None:
        """A connection, where there is none yet, and what the service wants. What it says where it wants nothing."""
        if self._writer is not None:
            return None
        await self._connect()
        if self._icap.preview_bytes is not None:
            return None
        self._write(self._line("OPTIONS") + b"Encapsulated: null-body=0\r\n\r\n")
        options = await self._read()
        if options.status != 200:
            return options
        wanted = options.fields.get("preview", "0")
        self._icap.preview_bytes = min(int(wanted), PREVIEW_LIMIT_BYTES) if wanted.isdigit() else 0
        if options.fields.get("connection", "").lower() == "close":
            await self._connect()
        return None

    async def _connect(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        made = await self._icap.connect(self._icap.address)
        self._reader, self._writer = await asyncio.open_connection(sock=made, limit=HEAD_LIMIT_BYTES)

    def _write(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)

    async def _send_preview(self, held: bytearray) -> Sequence[Finding | Unread]:
        """The head and a preview; the rest of what is held, where it is asked for."""
        size_bytes = self._icap.preview_bytes or 0
        preview, rest = bytes(held[:size_bytes]), bytes(held[size_bytes:])
        self._preview = None
        self._write(self._head(size_bytes) + _chunk(preview) + b"0\r\n\r\n")
        answer = await self._read()
        if answer.status != 100:
            return self._said(answer)
        self._answer = asyncio.get_running_loop().create_task(self._read())
        return await self._send(_chunk(rest))

    async def _send(self, data: bytes) -> Sequence[Finding | Unread]:
        """It may answer before it has heard all, and read no more."""
        assert self._writer is not None
        assert self._answer is not None
        self._writer.write(data)
        drained = asyncio.get_running_loop().create_task(self._writer.drain())
        await asyncio.wait({drained, self._answer}, return_when=asyncio.FIRST_COMPLETED)
        if not self._answer.done():
            await drained
            return ()
        drained.cancel()
        return self._said(self._answer.result())

    async def _read(self) -> Answer:
        assert self._reader is not None
        assert self._writer is not None
        await self._writer.drain()
        answer = parsed(await self._reader.readuntil(b"\r\n\r\n"))
        if answer.status == 200 and "res-hdr=0" in answer.fields.get("encapsulated", ""):
            return Answer(answer.status, answer.fields, _status(await self._reader.readuntil(b"\r\n\r\n")))
        return answer

    def _said(self, answer: Answer) -> Sequence[Finding | Unread]:
        """The judgement; nothing more is asked."""
        self.abandon()
        return judged(answer, self._part)

    def _line(self, method: str) -> bytes:
        return f"{method} {self._icap.uri} ICAP/1.0\r\nHost: {self._icap.address}\r\nAllow: 204\r\n".encode()

    def _head(self, preview_bytes: int) -> bytes:
        part = self._part
        first = (f"{part.method or 'POST'} {part.url or '/'} HTTP/1.1", f"Host: {part.host}")
        kind = f"Content-Type: {part.content_type or 'application/octet-stream'}"
        if part.sent:
            head = _lines(*first, kind)
            places = f"req-hdr=0, req-body={len(head)}"
        else:
            request = _lines(*first)
            head = request + _lines("HTTP/1.1 200 OK", kind)
            places = f"req-hdr=0, res-hdr={len(request)}, res-body={len(head)}"
        line = self._line("REQMOD" if part.sent else "RESPMOD")
        return line + f"Preview: {preview_bytes}\r\nEncapsulated: {places}\r\n\r\n".encode() + head


def _lines(*lines: str) -> bytes:
    """A head. What others wrote cannot end a line of it."""
    return "\r\n".join([*(re.sub(r"[^!-~ ]", "?", line) for line in lines), "", ""]).encode()


def _chunk(data: bytes | bytearray) -> bytes:
    """Nothing for nothing: an empty chunk would be the end."""
    return b"%x\r\n%s\r\n" % (len(data), data) if data else b""


def _status(head: bytes) -> int:
    """Of a first line `ICAP/1.0 204 …`, `HTTP/1.1 403 …`. Raises ValueError."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) < 2 or not re.fullmatch(rb"[1-5][0-9][0-9]", words[1]):
        raise ValueError("no status")
    return int(words[1])


def parsed(head: bytes) -> Answer:
    """An ICAP answer's head. Raises ValueError for what is none."""
    if not head.startswith(b"ICAP/1."):
        raise ValueError("no ICAP")
    lines = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:]]
    return Answer(_status(head), {name.strip().lower(): value.strip() for name, _, value in lines if name})


def judged(answer: Answer, part: Part) -> Sequence[Finding | Unread]:
    """What an answer means: nothing where it has nothing against it, or only would have it another way."""
    if answer.status not in (200, 204):
        return (Unread(why=f"the ICAP server says {answer.status}", location=place(part)),)
    infection = answer.fields.get("x-infection-found", answer.fields.get("x-virus-id", ""))
    if infection:
        threat = found[1] if (found := _THREAT.search(infection)) else infection
        return (_finding(part, f"malware: {_printable(threat)}", Severity.HIGH),)
    if answer.fields.get("x-violations-found", "0") != "0":
        return (_finding(part, "a violation, says the ICAP server", Severity.MEDIUM),)
    if answer.http_status >= _REFUSES:
        return (_finding(part, f"the ICAP server refuses it ({answer.http_status})", Severity.MEDIUM),)
    return ()


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else "�" for one in text.strip()[:100])


def _finding(part: Part, summary: str, severity: Severity) -> Finding:
    return Finding(
        detector=Icap.name, severity=severity, confidence=0.9, summary=summary, evidence="", location=place(part)
    )
