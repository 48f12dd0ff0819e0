"""Everything of a mail is told: parts decoded, what stands around them, and words of its fields."""

from __future__ import annotations

import time
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.body_parts import Event, Mark, Opened, Unreadable
from mitmsec.core.mime_parts import LINE_LIMIT_BYTES, MimeParts


def told(mail: bytes, step: int = 1 << 20, *, nested: bool = True) -> list[Event]:
    reader, seen = MimeParts(nested=nested), list[Event]()
    events = [event for at in range(0, len(mail), step) for event in reader.feed(mail[at : at + step])]
    for event in [*events, *reader.close()]:
        if isinstance(event, bytes) and seen and isinstance(seen[-1], bytes):
            seen[-1] += event
        elif event != b"":
            seen.append(event)
    return seen


def contents(mail: bytes, step: int = 1 << 20, *, nested: bool = True) -> dict[str, bytes]:
    found, name = dict[str, bytes](), ""
    for event in told(mail, step, nested=nested):
        if isinstance(event, Opened):
            name = event.name
            found.setdefault(name, b"")
        elif isinstance(event, bytes):
            found[name] += event
    return found


def heads(mail: bytes) -> bytes:
    return b"".join(event.head for event in told(mail) if isinstance(event, Opened))


def why(mail: bytes) -> list[str]:
    return [event.why for event in told(mail) if isinstance(event, Unreadable)]


def forwarded() -> bytes:
    inner = EmailMessage()
    inner["Subject"] = "inner"
    inner.set_content("plain")
    inner.add_attachment(b"deep" * 50, maintype="application", subtype="octet-stream", filename="deep.bin")
    made = EmailMessage()
    made["Subject"] = "outer Grüße"
    made.set_content("see below")
    made.add_attachment(inner)
    return bytes(made)


@pytest.mark.parametrize("step", [1, 61, 1 << 20])
def test_a_mail_within_a_mail_is_taken_apart_where_that_is_asked_for(step: int) -> None:
    found = contents(forwarded(), step)
    assert found["deep.bin"] == b"deep" * 50
    assert found["part 2"].strip() == b"plain"
    assert b"Subject: inner" in contents(forwarded(), step, nested=False)["part 2"]


def test_what_stands_around_the_parts_is_told_as_an_aside() -> None:
    mail = b"Content-Type: multipart/mixed; boundary=b\n\nbefore\n--b\n\nwithin\n--b--\n\nbehind\nmore\n"
    assert contents(mail) == {"preamble": b"before\n", "part 1": b"within\n", "epilogue": b"behind\nmore\n"}
    assert [event.is_aside for event in told(mail) if isinstance(event, Opened)] == [True, False, True]
    assert told(mail).count(Mark.ENDED) == 1


def test_encoded_words_stand_decoded_behind_the_head() -> None:
    head = b"Subject: =?utf-8?B?R3LDvMOf?=\r\n =?UTF-8?b?ZSE=?= and =?iso-8859-1?Q?caf=E9_x?= =?u?b?A?=\r\n"
    assert heads(head + b"\r\nhi") == head + "Subject: Grüße! and ".encode() + b"caf\xe9 x\r\n"
    assert heads(forwarded()).endswith(b'filename="deep.bin"\nMIME-Version: 1.0\n')
    plain = b"Subject: =?nothing\r\n"
    assert heads(plain + b"\r\n") == plain


def test_names_of_files_are_told_as_people_read_them() -> None:
    mail = b'Content-Disposition: attachment; filename="=?utf-8?B?R3LDvMOfZS50eHQ=?="\n\nx'
    (opened, *_rest) = told(mail)
    assert isinstance(opened, Opened)
    assert (opened.name, opened.file_name) == ("Grüße.txt", "Grüße.txt")


def test_a_field_that_the_library_stumbles_over_is_none() -> None:
    assert contents(b"Content-Disposition: a; filename*=\x00''%ff\n\nx") == {"part 1": b"x"}


def test_a_message_without_fields_is_all_content() -> None:
    assert contents(b"just text\n--not a boundary\n") == {"part 1": b"just text\n--not a boundary\n"}
    assert contents(b"only text, no line") == {"part 1": b"only text, no line"}
    assert heads(b"Subject: no body") == b"Subject: no body"
    assert contents(b"") == {}


def test_a_line_among_fields_that_is_none_hides_no_encoding() -> None:
    mail = b"Subject: a\nno field at all\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n"
    assert contents(mail) == {"part 1": b"hello"}
    assert b"no field at all" in heads(mail)
    for odd in (b"X :\n", b"From me\n", b"X: \n\t\nContent-Transfer-Encoding\n"):
        assert contents(odd + b"Content-Transfer-Encoding :\nx\n base64\n\naGVsbG8=\n") == {"part 1": b"hello"}
    assert contents(b"Content-Type: a/b\nX: a\n; boundary=b\nContent-Type: multipart/x; boundary=b\n\n--b\n") == {
        "part 1": b"--b\n"
    }


def test_fields_that_are_too_long_are_content() -> None:
    mail = (b"x: " + b"y" * 900 + b"\n") * 80 + b"\nbody"
    many = b"x:y\n" * 2001 + b"\nbody"
    for one in (mail, many):
        assert why(one) == ["more than 65536 bytes or 2000 lines of header fields"]
        assert contents(one) == {"preamble": one}
    assert why(b"Content-Type: message/rfc822\n" + b"x:y\n" * 1500 + b"\n" + b"x:y\n" * 1500 + b"\nbody") == []
    for much in (b";" * 65, b"y" * (1 << 14)):
        much = b"Content-Type: a/b" + much + b"\n\nx"
        assert why(much) == ["a header field of more than 64 parameters or 16384 bytes"]
        assert contents(much) == {"part 1": b"x"}
    assert why(b"Content-Transfer-Encoding: x-uu\n\nx") == ["its transfer encoding is not known here"]


@pytest.mark.parametrize(
    "head",
    [
        b"a:\n" * 21_000, b"a:\n" + b" \n" * 32_000, b"a:\n" + b"x\n" * 32_000, b"Content-Type:\n" * 4_000,
        b"Content-Type: a/b" + b'; x="%s"' % (b"y" * 240) * 250 + b"\n",
        b"Content-Type: multipart/x" + b"; x*0*=%s" % (b"%41" * 80) * 63 + b"\n",
    ],
)  # fmt: skip
def test_a_long_head_takes_little_time(head: bytes) -> None:
    """A mail has a thousand of them."""
    reader = MimeParts()
    begun_s = time.process_time()
    next(reader.feed(head + b"\n"))
    assert time.process_time() - begun_s < 0.04


def test_depth_is_bounded_and_what_is_cut_off_says_so() -> None:
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (at, at) for at in range(20))
    assert why(deep)[:1] == ["multipart in multipart, more than 16 times"]
    assert why(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\nx") == ["cut off: its last part has no end"]
    assert why(b"Content-Type: message/rfc822\n\n" * 5 + b"x") == []


def test_of_more_parts_than_anybody_sends_the_rest_is_told_as_it_is() -> None:
    many = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 1100 + b"--b\n\nSECRET\n--b--\n"
    assert why(many) == ["more than 1000 parts"]
    assert contents(many)["epilogue"].endswith(b"--b\n\nSECRET\n--b--\n")
    assert why(b"Content-Type: message/rfc822\n\n" * 1100 + b"x") == ["more than 1000 parts"]


def test_quoted_printable_and_base64_come_out_whole_at_any_length() -> None:
    quoted = b"Content-Transfer-Encoding: quoted-printable\n\n" + b"=41" * LINE_LIMIT_BYTES + b"=\n=C3=9F\n"
    assert len(contents(quoted, 1000)["part 1"]) >= LINE_LIMIT_BYTES
    assert contents(quoted, 1000) == contents(quoted)
    lines = b"Content-Transfer-Encoding: base64\n\n" + b"QUJD\nREVG\n" * 5000 + b"QQ==\nQQ==\n"
    assert contents(lines, 777)["part 1"] == b"ABCDEF" * 5000 + b"AA"


def test_base64_that_programs_read_in_different_ways_is_told_and_shown_as_it_travels() -> None:
    head = b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Transfer-Encoding: base64\n\n"
    mail = head + b"aGVsbG8h\ncard 4111 1111\n--b\n\nplain\n--b--\n"
    assert why(mail) == ["base64 that not all programs read in the same way"]
    assert contents(mail)["part 1"].startswith(b"hello!")
    assert contents(mail)["undecoded"] == b"card 4111 1111\n"
    assert contents(mail)["part 2"] == b"plain\n"
    assert [event.is_aside for event in told(mail) if isinstance(event, Opened)] == [True, False, True, False]
    assert contents(b"Content-Transfer-Encoding: base64\n\naGVsbG8hA=\nIQ==\n")["part 1"] == b"hello!!"
    assert heads(b"Subject: =?u?b?QUJDA?=\n\n") == b"Subject: =?u?b?QUJDA?=\nSubject: ABC\n"


PIECES = [
    b"Content-Type: multipart/mixed; boundary=b\n", b"Content-Transfer-Encoding: base64\n", b"\n", b"--b\n", b"--b--\n",
    b"Content-Disposition: attachment; filename*=utf-8''%ff\n", b"aGVsbG8=", b"=3D=\r\n", b"\xff\0", b"--", b"b",
    b"Content-Type: multipart/mixed; boundary*=\x00'\n", b"Content-Type: message/rfc822\n", b"a\n", b"QUJDQQ",
    b"Content-Transfer-Encoding: quoted-printable\n", b"Subject: =?a?b?QQ==?= =?\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.integers(1, 60), st.booleans())
def test_hostile_mail_is_told_the_same_however_it_is_cut(pieces: list[bytes], step: int, nested: bool) -> None:
    data = b"".join(pieces)
    assert told(data, step, nested=nested) == told(data, nested=nested)


SECRET = b"dGhlIHNlY3JldA=="  # the secret
DOUBTFUL = {
    "a comment before its type": b"Content-Type: (c) multipart/mixed; boundary=x\n",
    "a comment in its type": b"Content-Type: multipart(c)/mixed; boundary=x\n",
    "blanks in its type": b"Content-Type: multipart / mixed; boundary=x\n",
    "a comment behind its type": b"Content-Type: multipart/mixed; (c) boundary=x\n",
    "two slashes": b"Content-Type: multipart/mixed/x\n",
    "no subtype": b"Content-Type: multipart; boundary=x\n",
    "no semicolon": b"Content-Type: multipart/mixed boundary=x\n",
    "a comma": b"Content-Type: multipart/mixed, boundary=x\n",
    "no boundary": b"Content-Type: multipart/mixed\n",
    "an empty boundary": b'Content-Type: multipart/mixed; boundary=""\n',
    "two boundaries": b"Content-Type: multipart/mixed; boundary=x; boundary=y\n",
    "one in two ways": b"Content-Type: multipart/mixed; boundary=y; boundary*=us-ascii''x\n",
    "one in pieces": b"Content-Type: multipart/mixed; boundary*0=x; boundary*1=y\n",
    "a comment behind it": b"Content-Type: multipart/mixed; boundary=x (c)\n",
    "eight bits": b"Content-Type: multipart/mixed; boundary=x\xe4\n",
    "a blank at its end": b'Content-Type: multipart/mixed; boundary="x "\n',
    "quoted letters": b'Content-Type: multipart/mixed; boundary="\\x"\n',
    "encoded as a whole": b"Content-Type: multipart/mixed; boundary=x\nContent-Transfer-Encoding: base64\n",
    "two types": b"Content-Type: multipart/mixed; boundary=x\nContent-Type: text/plain\n",
    "two encodings": b"Content-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n",
    "a bare CR": b"X: a\rContent-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64\n",
    "a mail that is encoded": b"Content-Type: message/rfc822\nContent-Transfer-Encoding: base64\n",
}


@pytest.mark.parametrize("head", DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_programs_may_take_for_something_else_is_told(head: bytes) -> None:
    assert len(why(head + b"\n--x\n\ntext\n--x--\n")) >= 1


PLAIN = {
    "quoted": b'Content-Type: multipart/mixed; charset="utf-8"; boundary="=_ a:b?c"; x=y\n',
    "folded": b'Content-Type: multipart/signed; micalg=x;\n\tprotocol="a/b";\n boundary="=_ a:b?c"\n',
    "its end": b'Content-Type: MULTIPART/Report ; report-type=delivery-status ; BOUNDARY = "=_ a:b?c" ;\n',
    "seven bits": b'Content-Transfer-Encoding: 7bit\nContent-Type: multipart/related; t="x/y"; boundary="=_ a:b?c"\n',
}


@pytest.mark.parametrize("head", PLAIN.values(), ids=PLAIN)
def test_what_all_programs_take_for_the_same_is_not(head: bytes) -> None:
    mail = head + b"\n--=_ a:b?c\nContent-Transfer-Encoding: base64\n\n" + SECRET + b"\n--=_ a:b?c--\n"
    assert (why(mail), contents(mail)["part 1"]) == ([], b"the secret")


@pytest.mark.parametrize("kind", ["message/rfc822", "message/global", "message/news", None])
def test_mails_of_all_kinds_within_a_mail_are_taken_apart(kind: str | None) -> None:
    """Of a digest, a part that says nothing is one."""
    inner = b"Subject: inner\nContent-Transfer-Encoding: base64\n\n" + SECRET + b"\n"
    said = f"Content-Type: {kind}\n".encode() if kind else b""
    outer = b"Content-Type: multipart/digest; boundary=x\n\n--x\n" + said + b"\n" + inner + b"--x--\n"
    assert (why(outer), contents(outer)["part 1"]) == ([], b"the secret")
