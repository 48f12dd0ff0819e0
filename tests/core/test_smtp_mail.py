"""Which bytes of an SMTP connection are a message, whatever the pieces and whoever means to hide one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.clienthello import Malformed
from mitmsec.core.smtp_mail import FREE_CHUNKS, LINE_LIMIT_BYTES, OWED_LIMIT, Event, Mark, Said, SmtpReader

HELLO = [b"<220 mx.test ESMTP\r\n", b">EHLO me\r\n", b"<250-mx.test\r\n250-CHUNKING\r\n250 PIPELINING\r\n"]
MAIL = [b">MAIL FROM:<a@a.test>\r\nRCPT TO:<b@b.test>\r\n", b"<250 ok\r\n250 ok\r\n"]
DATA = [*HELLO, *MAIL, b">DATA\r\n", b"<354 go\r\n"]


def play(turns: list[bytes], step: int = 1 << 20, reader: SmtpReader | None = None) -> list[Event]:
    """What comes of `turns`, `>` of the client's and `<` of the server's; neighbours of a kind as one."""
    reader, told = reader or SmtpReader(), list[Event]()
    for turn in turns:
        for at in range(1, len(turn), step):
            piece = turn[at : min(at + step, len(turn))]
            if turn.startswith(b"<"):
                why = reader.received(piece)
                told += [] if why is None else [why]
            else:
                for event in reader.sent(piece):
                    last = told[-1] if told else None
                    if isinstance(event, bytes) and isinstance(last, bytes):
                        told[-1] = last + event
                    elif isinstance(event, Said) and isinstance(last, Said):
                        told[-1] = Said(last.data + event.data)
                    elif event != b"":
                        told.append(event)
    return told


def messages(turns: list[bytes], step: int = 1 << 20) -> list[bytes]:
    """Those that are complete."""
    whole, now = list[bytes](), b""
    for event in play(turns, step):
        if isinstance(event, bytes):
            now += event
        elif event is Mark.ENDS:
            whole.append(now)
        now = b"" if event in (Mark.BEGINS, Mark.ENDS) else now
    return whole


def why(turns: list[bytes]) -> list[str]:
    return [event.reason for event in play(turns) if isinstance(event, Malformed)]


def test_a_message_by_data_comes_without_its_dots() -> None:
    said = b">Subject: x\r\n\r\n..dot\r\n.one more\r\n...\r\n\r\nlast\r\n.\r\n"
    assert messages([*DATA, said]) == [b"Subject: x\r\n\r\n.dot\r\none more\r\n..\r\n\r\nlast\r\n"]
    assert messages([*DATA, b">.\r\n"]) == [b""]
    assert messages([*DATA, b">..\r\n.\r\n"]) == [b".\r\n"]


def test_a_message_by_chunks_comes_as_it_is_and_in_a_pipeline() -> None:
    said = b">BDAT 5\r\n.\r\n.\rbdat 4 last\r\n\n.\r\nQUIT\r\n"
    told = play([*HELLO, *MAIL, said])
    assert told[-6:] == [b".\r\n.\r", Mark.CHUNKED, Said(b"bdat 4 last\r\n"), b"\n.\r\n", Mark.ENDS, Said(b"QUIT\r\n")]
    assert messages([*HELLO, *MAIL, b">BDAT 2\r\nabBDAT 0 LAST\r\n"]) == [b"ab"]


def test_several_messages_are_told_apart() -> None:
    more = [b"<250 queued\r\n", *MAIL, b">DATA\r\n", b"<354 go\r\n", b">two\r\n.\r\n"]
    assert messages([*DATA, b">one\r\n.\r\n", *more]) == [b"one\r\n", b"two\r\n"]
    pipeline = b">BDAT 3 LAST\r\noneMAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 3 LAST\r\ntwo"
    assert messages([*HELLO, *MAIL, pipeline]) == [b"one", b"two"]


@pytest.mark.parametrize("verb", [b"RSET", b"QUIT", b"EHLO again", b"MAIL FROM:<c>"])
def test_a_message_in_chunks_that_is_given_up_ends(verb: bytes) -> None:
    assert messages([*HELLO, *MAIL, b">BDAT 4\r\nhalf" + verb + b"\r\n"]) == [b"half"]


def test_a_message_that_is_refused_is_none() -> None:
    refused = [*HELLO, *MAIL, b">DATA\r\n", b"<503 no\r\n", b">NOOP\r\n.\r\n"]
    assert messages(refused) == []
    assert why(refused) == []


def test_a_server_that_owes_replies_and_asks_for_the_message_has_it() -> None:
    assert messages([*HELLO, b">MAIL FROM:<a>\r\n\r\nDATA\r\n", b"<354 go\r\n", b">x\r\n.\r\n"]) == [b"x\r\n"]


def test_answers_to_a_question_for_a_password_are_no_commands() -> None:
    login = [b">AUTH LOGIN\r\n", b"<334 VXNlcg==\r\n", b">DATA\r\n", b"<334 UGFzcw==\r\n", b">AAAA\r\n", b"<235 ok\r\n"]
    assert why([*HELLO, *login, *MAIL]) == []
    assert messages([*HELLO, *login, *DATA[3:], b">x\r\n.\r\n"]) == [b"x\r\n"]


def test_lmtp_has_a_reply_for_each_recipient() -> None:
    reader = SmtpReader()
    opening = [b"<220 lmtp\r\n", b">LHLO me\r\n", b"<250 CHUNKING\r\n"]
    to = [
        b">MAIL FROM:<a>\r\nRCPT TO:<b>\r\nRCPT TO:<c>\r\nRCPT TO:<d>\r\n",
        b"<250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n",
    ]
    play([*opening, *to, b">DATA\r\n", b"<354 go\r\n"], reader=reader)
    assert [reader.refusals for event in reader.sent(b"x\r\n.\r\n") if event is Mark.ENDS] == [2]
    assert (reader.owed, reader.refusals) == (2, 0)
    play([b"<250 ok\r\n250 ok\r\n", *to], reader=reader)
    said = b"BDAT 1\r\nxBDAT 1 LAST\r\ny"
    assert [(event, reader.refusals) for event in reader.sent(said) if isinstance(event, Mark)][1:] == [
        (Mark.CHUNKED, 1),
        (Mark.ENDS, 0),
    ]
    assert reader.owed == 3


def test_a_pipeline_can_be_refused_whole_as_long_as_no_other_message_is_in_it() -> None:
    reader = SmtpReader()
    play(HELLO, reader=reader)
    said = b"MAIL FROM:<a>\r\nRCPT TO:<b>\r\nBDAT 1 LAST\r\nx" * 2
    assert [reader.refusals for event in reader.sent(said) if event is Mark.ENDS] == [3, 0]


def test_a_greeting_that_somebody_else_read_or_that_was_not_awaited_disturbs_nothing() -> None:
    reader = SmtpReader()
    play(DATA[1:], reader=reader)
    assert reader.is_sure
    assert reader.owed == 0
    assert reader.received(b"421 time is up\r\n") is None  # which nobody asked for
    early = SmtpReader()
    play([DATA[1], DATA[0], *DATA[2:]], reader=early)
    assert early.owed == 0


@pytest.mark.parametrize("turns", [
    [b"<554-no\r\n554 not you\r\n"], [b"<421 busy\r\n"], [b"<450 later\r\n"], [b"<220 mx\r\n", b"<421 time is up\r\n"],
    [b">NOOP\r\n", b"<220 mx\r\n250 ok\r\n"], [*DATA[1:3], b">STARTTLS\r\n", b"<220 go\r\n"],
    [b">STARTTLS\r\n", b"<220 go\r\n421 no\r\n"], [*HELLO, b">BDAT 2147483647\r\n", b"<552 no\r\n"],
    [*DATA, b">x", b"<552 no\r\n"],
])  # fmt: skip
def test_what_servers_say_unasked_is_a_greeting_a_farewell_or_a_refusal(turns: list[bytes]) -> None:
    assert why(turns) == []


@pytest.mark.parametrize("end", [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r.\r\n", b"\r\n.\rX", b"\n.\rX"])
def test_an_end_that_only_some_servers_see_is_malformed(end: bytes) -> None:
    """SMTP smuggling (CVE-2023-51764 and others)."""
    assert why([*DATA, b">x" + end + b"MAIL FROM:<evil>\r\n"]) == [
        "a line with nothing but a dot, between bare CR or LF"
    ]


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([*DATA[:-1], b">early\r\n"], "the client goes on before its question was answered"),
        ([*HELLO, b">AUTH PLAIN\r\nNOOP\r\n"], "the client goes on before its question was answered"),
        ([*HELLO, b">NOOP\r\n", b"<250 ok\r\n354 go\r\n"], "the server asks for a message that nobody announced"),
        ([*HELLO, b">NOOP\rBDAT 5 LAST\r\n"], "a command with a CR or a NUL in it"),
        ([*HELLO, b">\0BDAT 5 LAST\r\n"], "a command with a CR or a NUL in it"),
        ([*HELLO, *MAIL, b">BURL imap://a/b;uid=1 LAST\r\n"], "a message that comes from elsewhere"),
        (
            [*DATA, b">Subject: a\n.Content-X: b\r\n"],
            "a dot behind a bare LF, which some servers take off, and others leave",
        ),
        ([*DATA[:-1], b"<350 go\r\n"], "the server asks for what is neither a message nor a password"),
        ([*DATA[:-1], b"<334 go\r\n"], "the server asks for what is neither a message nor a password"),
        ([*HELLO, b">AUTH X\r\n", b"<335\r\n"], "the server asks for what is neither a message nor a password"),
        (
            [*HELLO[:2], b"<250 mx\r\n", b">BDAT 1 LAST\r\nx"],
            "a chunk that nobody offered to take, or of no size that all servers know",
        ),
        ([*HELLO, b">BDAT x\r\n"], "a chunk that nobody offered to take, or of no size that all servers know"),
        (
            [*HELLO, b">BDAT 9999999999999999999\r\n"],
            "a chunk that nobody offered to take, or of no size that all servers know",
        ),
        ([*HELLO, b">BDAT 4294967301\r\n"], "a chunk that nobody offered to take, or of no size that all servers know"),
        ([*HELLO, b">BDAT 2147483648\r\n"], "a chunk that nobody offered to take, or of no size that all servers know"),
        ([*HELLO, b"<250 ok\r\n"], "an answer to what nobody asked"),
        ([*HELLO, b"<220 again\r\n"], "an answer to what nobody asked"),
        ([*HELLO, b"<550-no\r\n550 no\r\n"], "an answer to what nobody asked"),
        ([b"<250 ok\r\n"], "an answer to what nobody asked"),
        ([*HELLO, b">STARTTLS\r\n", b"<220 go\r\n220 go\r\n"], "an answer to what nobody asked"),
        ([*HELLO, b">BDAT\r\n"], "a chunk that nobody offered to take, or of no size that all servers know"),
        ([*HELLO, b">" + b"BDAT 1\r\nx" * (FREE_CHUNKS + 1)], "more chunks than there is content for"),
        ([*HELLO, b">" + b"x" * (LINE_LIMIT_BYTES + 1)], "a command without end"),
        ([*HELLO, b">" + b"\r\n" * (OWED_LIMIT + 1)], "more commands than anybody answers"),
        ([b"<220 hi\r\nwhat\r\n"], "an answer that is none"),
        ([b"<2x"], "an answer that is none"),
        ([b"<* OK IMAP4rev1"], "an answer that is none"),
    ],
)
def test_what_two_could_read_in_two_ways_is_malformed(turns: list[bytes], reason: str) -> None:
    assert why([*turns, b">more\r\n", b"<what\r\n"]) == [reason]
    last = play([*turns, b">.\r\n"])[-1]
    assert isinstance(last, Said)
    assert last.data.endswith(b".\r\n")


TURNS = st.lists(
    st.sampled_from(
        [
            *DATA, b"<250 ok\r\n", b"<354 go\r\n", b"<334 x\r\n", b">.\r\n", b">a\r\n..b\r\n", b">\r\n.", b">\r",
            b">\n",
            b">BDAT 4 LAST\r\n", b">BDAT 2\r\n", b">abcd", b">AUTH X\r\n", b">QUIT\r\n", b"<250-CHUNKING\r\n", b">.",
            b">LHLO x\r\n", b"<4", b"<50 no\r\n", b">DATA\r\n", b">\r\n.\r\n",
        ]
    ),
    max_size=24,
)  # fmt: skip


@given(TURNS, st.integers(1, 5))
def test_it_is_read_the_same_however_it_is_cut(turns: list[bytes], step: int) -> None:
    def read(step: int) -> list[Event]:
        told = play([*HELLO, *MAIL, *turns], step)
        end = next((at for at, event in enumerate(told) if isinstance(event, Malformed)), len(told))
        return told[: end + 1]

    assert read(step) == read(1 << 20)


@given(st.binary(max_size=200), st.integers(1, 7))
def test_any_lines_come_through_as_they_were_sent(body: bytes, step: int) -> None:
    lines = body.replace(b"\r", b"").split(b"\n")
    stuffed = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    assert messages([*DATA, b">" + stuffed + b".\r\n"], step) == [b"\r\n".join(lines) + b"\r\n"]
