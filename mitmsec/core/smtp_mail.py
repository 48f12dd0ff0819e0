"""Mail in SMTP, submission and LMTP (RFC 5321, 3030, 2033): which of a client's bytes are commands, which a message.

    client: commands ──► Said        DATA ── 354 ──► lines, dots undone ──► BEGINS, bytes*, ENDS
                                     BDAT n ───────► n bytes            ──► BEGINS, bytes*, CHUNKED, … ENDS (LAST)
    server: replies  ──► what of this it has agreed to

Both have to agree on where a message ends, or one could be hidden in another. So what some servers take for its end and
others do not (a dot between bare CR or LF), what a client says before it was told to go on, and chunks that nobody
offered to take, are malformed. Memory is bounded, and answers do not depend on how bytes are cut into pieces.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Generator, Iterator
from enum import Enum, auto

from mitmsec.core.clienthello import Malformed
from mitmsec.core.model import Value

LINE_LIMIT_BYTES = 1 << 14  # RFC 4954 §4 wants 12,288 for AUTH
FREE_CHUNKS = 1000  # of a message; of more, each has LEAST_CHUNK_BYTES on average
LEAST_CHUNK_BYTES = 512
CHUNK_LIMIT_BYTES = (1 << 31) - 1  # of a larger one some servers take the last 32 bits
OWED_LIMIT = 10_000  # replies that the server has not given: one for each recipient in a pipeline
_KEPT_BYTES = 512  # of a reply's line
_REPLY = re.compile(rb"([0-9]{3})(?:([ -])(.*))?\Z", re.DOTALL)
_MAY_REPLY = re.compile(rb"[0-9]{3}|[0-9]{0,2}\Z")
_CHUNKING = re.compile(rb"CHUNKING[ \t]*\Z", re.IGNORECASE)
_DOT = re.compile(rb"[\r\n]\.")
_BDAT = re.compile(rb"[ \t]*([0-9]{1,10})(?:[ \t]+(LAST))?[ \t]*\Z", re.IGNORECASE)
_GREETS = frozenset({"EHLO", "HELO", "LHLO"})
_ENDS_MESSAGE = _GREETS | {"DATA", "MAIL", "QUIT", "RSET"}  # one that was to come in more chunks
_FORGETS = _GREETS | {"MAIL", "RSET"}
_ASKS = frozenset({"AUTH", "DATA"})  # what comes next depends on the answer


class Said(Value, frozen=True):
    """Commands, and what else is no message."""

    data: bytes


class Mark(Enum):
    """What becomes of a message. Each is told before the reply to it is owed."""

    BEGINS = auto()
    CHUNKED = auto()  # a chunk is complete, and the message is not
    ENDS = auto()  # it is complete, or given up


type Event = Said | bytes | Mark | Malformed


class SmtpReader:
    """One connection. After Malformed everything is Said."""

    def __init__(self) -> None:
        self._owed = deque[str]()  # verbs of commands without a reply
        self._line = b""  # of the client's, unfinished
        self._held = b""  # of a message by DATA: what may be its end
        self._before_bytes = 0  # of that, which the client did not say
        self._is_data = self._is_lost = False
        self._chunk_bytes: int | None = None  # still to come
        self._is_last = False  # chunk
        self._chunks = self._chunks_bytes = 0  # of the message
        self._in_message = False
        self._goes_on = False  # the client's next line answers a question, and is no command
        self._reply = b""  # of the server's, unfinished
        self._is_first_reply = True
        self._offers_chunks = self._is_lmtp = False
        self._recipients = 0  # of the message, as far as the server took them
        self.is_sure = False
        """It is mail that is spoken here."""

    @property
    def owed(self) -> int:
        """How many replies the server has not given."""
        return len(self._owed)

    @property
    def refusals(self) -> int:
        """As its chunk or end is told: how many replies the client awaits, if all may refuse this message. 0: some are
        about an earlier one, or chunk."""
        if "." in self._owed:
            return 0
        return len(self._owed) + (self._replies if self._is_data or self._is_last else 1)

    @property
    def _replies(self) -> int:
        """How many a complete message has: one, and in LMTP one for each recipient."""
        return max(1, self._recipients) if self._is_lmtp else 1

    def sent(self, data: bytes) -> Iterator[Event]:
        """The client's next bytes. What comes of them has to be taken before the next call."""
        while data:
            if self._is_lost:
                yield Said(data)
                return
            if self._chunk_bytes is not None:
                data = yield from self._chunk(data, self._chunk_bytes)
            elif self._is_data:
                data = yield from self._message(data)
            else:
                data = yield from self._command(data)

    def received(self, data: bytes) -> Malformed | None:
        """The server's next bytes."""
        if self._is_lost:
            return None
        *lines, rest = (self._reply + data).split(b"\n")
        for line in lines:
            if (why := self._replied(line.removesuffix(b"\r"))) is not None:
                return why
        self._reply = rest[:_KEPT_BYTES]
        return None if _MAY_REPLY.match(self._reply) else self._lose("an answer that is none")

    # -- commands ------------------------------------------------------------------------------------------------------
    def _command(self, data: bytes) -> Generator[Event, None, bytes]:
        if self._owed and self._owed[-1] in _ASKS:
            yield self._lose("the client goes on before its question was answered")
            return data
        line, newline, rest = data.partition(b"\n")
        yield Said(line + newline)
        self._line += line
        if len(self._line) > LINE_LIMIT_BYTES:
            yield self._lose("a command without end")
        elif newline:
            said, self._line = self._line, b""
            yield from self._obey(said)
        return rest

    def _obey(self, line: bytes) -> Iterator[Event]:
        if self._goes_on:
            self._goes_on = False
            self._owed.append("AUTH")
            return
        if b"\0" in line or b"\r" in line.removesuffix(b"\r"):
            yield self._lose("a command with a CR or a NUL in it")
            return
        words = line.strip().split(None, 1) or [b""]
        verb = words[0].decode("latin-1").upper()
        self.is_sure = self.is_sure or verb in _GREETS or verb == "MAIL"
        self._is_lmtp = self._is_lmtp or verb == "LHLO"
        if verb == "BDAT":
            yield from self._begin_chunk(words[-1])
            return
        if verb == "BURL":
            yield self._lose("a message that comes from elsewhere")
            return
        if self._in_message and verb in _ENDS_MESSAGE:
            self._in_message = False
            yield Mark.ENDS
        if verb in _FORGETS:
            self._recipients = 0
        self._owed.append(verb)
        if len(self._owed) > OWED_LIMIT:
            yield self._lose("more commands than anybody answers")

    # -- messages ------------------------------------------------------------------------------------------------------
    def _begin_chunk(self, words: bytes) -> Iterator[Event]:
        match = _BDAT.match(words)
        if match is None or int(match[1]) > CHUNK_LIMIT_BYTES or not self._offers_chunks:
            yield self._lose("a chunk that nobody offered to take, or of no size that all servers know")
            return
        self._chunk_bytes, self._is_last = int(match[1]), match[2] is not None
        if not self._in_message:
            self._in_message, self._chunks, self._chunks_bytes = True, 0, 0
            yield Mark.BEGINS
        self._chunks, self._chunks_bytes = self._chunks + 1, self._chunks_bytes + self._chunk_bytes
        if self._chunks > FREE_CHUNKS and self._chunks_bytes < self._chunks * LEAST_CHUNK_BYTES:
            yield self._lose("more chunks than there is content for")
        elif not self._chunk_bytes:
            yield from self._end_chunk()

    def _chunk(self, data: bytes, left_bytes: int) -> Generator[Event, None, bytes]:
        piece = data[:left_bytes]
        yield piece
        self._chunk_bytes = left_bytes - len(piece)
        if not self._chunk_bytes:
            yield from self._end_chunk()
        return data[left_bytes:]

    def _end_chunk(self) -> Iterator[Event]:
        self._chunk_bytes = None
        yield Mark.ENDS if self._is_last else Mark.CHUNKED
        self._in_message = not self._is_last
        self._owed.extend(["."] * (self._replies if self._is_last else 1))

    def _message(self, data: bytes) -> Generator[Event, None, bytes]:
        if not self._in_message:
            self._in_message = True
            yield Mark.BEGINS
        buffer, at, pieces = self._held + data, 0, list[bytes]()
        while (found := _DOT.search(buffer, at)) is not None:
            dot = found.end() - 1
            after = buffer[dot + 1 : dot + 3]
            if after in (b"", b"\r"):  # more must come
                break
            is_line = buffer[max(0, dot - 2) : dot] == b"\r\n"
            if after[0] not in b"\r\n" and not is_line and buffer[dot - 1 : dot] == b"\n":
                yield self._content(b"".join(pieces) + buffer[at:dot])
                yield self._lose("a dot behind a bare LF, which some servers take off, and others leave")
                return buffer[dot:]
            if after[0] not in b"\r\n":
                pieces.append(buffer[at : dot if is_line else dot + 1])
                at = dot + 1
                continue
            yield self._content(b"".join(pieces) + buffer[at:dot])
            if is_line and after == b"\r\n":
                yield from self._end_message()
                return buffer[dot + 3 :]
            yield self._lose("a line with nothing but a dot, between bare CR or LF")
            return buffer[dot:]
        keep = max(at, _line_end(buffer) if found is None else found.start() - 1)
        yield self._content(b"".join(pieces) + buffer[at:keep])
        self._held = buffer[keep:]
        return b""

    def _content(self, data: bytes) -> bytes:
        """Without the line break that the first line is thought to have before it."""
        taken = data[self._before_bytes :]
        self._before_bytes -= min(self._before_bytes, len(data))
        return taken

    def _end_message(self) -> Iterator[Event]:
        yield Mark.ENDS
        self._is_data = self._in_message = False
        self._owed.extend(["."] * self._replies)

    def _lose(self, reason: str) -> Malformed:
        self._is_lost = True
        return Malformed(reason=reason)

    # -- replies -------------------------------------------------------------------------------------------------------
    def _replied(self, line: bytes) -> Malformed | None:
        match = _REPLY.match(line)
        if match is None:
            return self._lose("an answer that is none")
        code, sign, text = match.groups()
        if self._owed and self._owed[0] in _GREETS and code == b"250" and _CHUNKING.match(text or b""):
            self._offers_chunks = True
        return None if sign == b"-" else self._answered(code)

    def _answered(self, code: bytes) -> Malformed | None:
        if code == b"354":
            if "DATA" not in self._owed:
                return self._lose("the server asks for a message that nobody announced")
            while self._owed.popleft() != "DATA":
                pass
            self._is_data, self._held, self._before_bytes = True, b"\r\n", 2
            return None
        is_first, self._is_first_reply = self._is_first_reply, False
        if not self._owed:
            return None if self._comes_unasked(code, is_first) else self._lose("an answer to what nobody asked")
        if code == b"220" and (self._owed[0] in _GREETS or (is_first and self._owed[0] != "STARTTLS")):
            return None  # the greeting, which the client did not await
        verb = self._owed.popleft()
        if code.startswith(b"3") and (code != b"334" or verb == "DATA"):  # clients may go by its first digit: §4.2.1
            return self._lose("the server asks for what is neither a message nor a password")
        self._goes_on = self._goes_on or (verb == "AUTH" and code == b"334")
        self._recipients += verb == "RCPT" and code.startswith(b"2")
        return None

    def _comes_unasked(self, code: bytes, is_first: bool) -> bool:
        """A greeting (§3.1, §4.2.3), a farewell (§3.8), or the refusal of a message that has not ended."""
        is_inside = self._is_data or self._chunk_bytes is not None
        refuses = code.startswith((b"4", b"5")) and (is_first or is_inside)
        return refuses or code == b"421" or (is_first and code == b"220")


def _line_end(buffer: bytes) -> int:
    """Where the line break at its end begins, in which the end of a message may begin."""
    return len(buffer) - (2 if buffer.endswith(b"\r\n") else buffer.endswith((b"\r", b"\n")))
