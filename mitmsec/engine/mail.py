"""Mail in SMTP, submission and LMTP: commands and replies are read as a stream, each message as a body of its own.

    client ──► SmtpReader (core) ──► commands ──────────────────────► a stream's reading
                                └──► messages ──► MimeParts (core) ──► a reading for each part, one after the other

The end of a message goes on when all inspectors have had it. What is refused is taken to its end and goes nowhere: then
the client is told so, for a mail program that only sees a reset comes again.

Whether it is mail that is spoken inside TLS, only what is said there can tell. Until it is known not to be, all goes
through here. Inspectors that are awaited read mails; what is said around them they read only where that is no longer
mail, or so much that it could be a file.
"""

from __future__ import annotations

import asyncio
import time

from msgspec.structs import replace

from mitmsec.core.clienthello import Malformed
from mitmsec.core.inspection import Part, PartKind
from mitmsec.core.messages import HandOver
from mitmsec.core.mime_parts import MimeParts
from mitmsec.core.smtp_mail import Mark, Said, SmtpReader
from mitmsec.core.sniff import Protocol
from mitmsec.engine import pages
from mitmsec.engine.split import SplitReading
from mitmsec.engine.stream import Stream
from mitmsec.engine.turns import TURN_S
from mitmsec.engine.watch import NOT_INSPECTED, Asks, Blocked, Watch

CONTENT_TYPE = "message/rfc822"
AROUND_LIMIT_BYTES = 1 << 16  # said around one mail, in one direction: some 500 recipients
_GREETING = b"220"
_VERBS = frozenset({b"AUTH", b"EHLO", b"HELO", b"HELP", b"LHLO", b"MAIL", b"NOOP", b"QUIT", b"RSET", b"VRFY"})


class MailStream(Stream):
    """Of a connection in which mail may be spoken; `is_known`: is."""

    def __init__(self, watch: Watch, hand_over: HandOver, *, is_known: bool) -> None:
        self._hand_over, self._parts = hand_over, _parts(hand_over)
        super().__init__(watch, *self._parts, asks=Asks.AT_ONCE)
        self._reader: SmtpReader | None = SmtpReader()
        self._others: Stream | None = None  # for inspectors that are awaited: of what is no mail
        self._around = {True: b"", False: b""}  # what they have not been shown: said since the last mail began
        self._is_known = is_known
        self._undecided = set() if is_known else {True, False}  # directions whose first bytes are to tell
        self._number = 0
        self._message: SplitReading | None = None
        self._refused: Blocked | None = None

    @property
    def waits(self) -> bool:
        return self._reader is not None or (self._others is not None and self._others.waits)

    async def read(self, data: bytes, *, sent: bool) -> bytes:
        self._decide(data, sent=sent)
        said = data
        if self._reader is not None and sent:
            said = await self._sent(self._reader, data)
        elif self._reader is not None and (why := self._reader.received(data)) is not None:
            self._lose(why.reason)
        if self._refused is not None:
            return b"" if sent else data
        await super().read(said, sent=sent)
        await self._show_others(said, sent=sent)
        return data

    async def _show_others(self, said: bytes, *, sent: bool) -> None:
        """From its beginning, once they read it."""
        if not self._watch.waits:
            return
        self._around[sent] += said
        if self._others is None and len(self._around[sent]) > AROUND_LIMIT_BYTES:
            self._open_others()
        if self._others is None:
            return
        for way, shown in self._around.items():
            self._around[way] = b""
            if shown:
                await self._others.read(shown, sent=way)

    async def _sent(self, reader: SmtpReader, data: bytes) -> bytes:
        """Messages are read; what is none comes of it. A few bytes may be a chunk, so others get their turn."""
        commands, begun_s = list[bytes](), time.process_time()
        for event in reader.sent(data):
            match event:
                case Said(data=command):
                    commands.append(command)
                case Malformed(reason=reason):
                    self._lose(reason)
                case _:
                    await self._hear(event)
            if time.process_time() - begun_s > TURN_S:
                await asyncio.sleep(0)
                begun_s = time.process_time()
        return b"".join(commands)

    async def end(self, *, sent: bool) -> None:
        if self._refused is not None:
            raise self._refused
        if sent:
            self._give_up_message()
        await super().end(sent=sent)
        if self._others is not None:
            await self._others.end(sent=sent)

    def close(self) -> None:
        self._give_up_message()
        super().close()
        if self._others is not None:
            self._others.close()

    def _decide(self, data: bytes, *, sent: bool) -> None:
        """A server that greets as those of mail do, and a client that speaks as theirs; or such a client at first."""
        if sent not in self._undecided:
            return
        self._undecided.discard(sent)
        if sent:
            self._undecided.clear()
        words = data[:5].upper().split()
        if not (words and words[0] in _VERBS if sent else data.startswith(_GREETING)):
            self._undecided.clear()
            self._open_others()

    def _open_others(self) -> None:
        """Raises Blocked where it is a failure that they only hear of it."""
        self._others = Stream(self._watch, *self._parts, asks=Asks.AWAITED)

    def _lose(self, reason: str) -> None:
        """Messages are told apart no longer. What only passed for mail (POP3: `QUIT`) is another stream."""
        if self._refused is not None:
            raise self._refused
        reader, self._reader = self._reader, None
        self._give_up_message()
        if reader is not None and (reader.is_sure or self._is_known):
            self._watch.failed(NOT_INSPECTED, f"SMTP: {reason}")
        if self._others is None:
            self._open_others()

    def _give_up_message(self) -> None:
        message, self._message = self._message, None
        if message is not None:
            message.abandon()
            message.close()

    async def _hear(self, event: bytes | Mark) -> None:
        """Raises Blocked where the client can be told."""
        if event is Mark.BEGINS:
            return self._begin()
        message = self._message
        if message is not None:
            try:
                await message.read(event if isinstance(event, bytes) else b"", ends=event is Mark.ENDS)
            except Blocked as blocked:
                self._refused, self._message = blocked, None
                message.abandon()
        if self._refused is not None and isinstance(event, Mark):
            raise self._told(self._refused)
        if event is Mark.ENDS:
            self._message = None

    def _begin(self) -> None:
        self._number += 1
        self._around = {True: b"", False: b""}
        part = replace(self._parts[0], kind=PartKind.BODY, content_type=CONTENT_TYPE, name=f" of mail {self._number}")
        self._message = SplitReading(self._watch, part, MimeParts(nested=True), "")

    def _told(self, blocked: Blocked) -> Blocked:
        """The same, with what its client is told: nothing where it waits for the answer to another message, too."""
        order = self._hand_over
        line = pages.mail_refusal(
            order.flow, order.decision.rule, str(blocked), order.direction, is_final=blocked.finding is not None
        )
        count = self._reader.refusals if self._reader is not None else 0
        return Blocked(str(blocked), blocked.finding, answer=line * count)


def plain(watch: Watch, hand_over: HandOver) -> Stream:
    """A stream that no HTTP precedes: what is in the clear (`protocol` says what that is), or in TLS."""
    if hand_over.protocol in (None, Protocol.SMTP):
        return MailStream(watch, hand_over, is_known=hand_over.protocol is not None)
    return Stream(watch, *_parts(hand_over))


def _parts(hand_over: HandOver) -> tuple[Part, Part]:
    sent, received = (
        Part(flow=hand_over.flow, kind=PartKind.STREAM, sent=way, host=hand_over.name) for way in (True, False)
    )
    return sent, received
