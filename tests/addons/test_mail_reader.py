"""Mail: its parts come out decoded, whatever program made them and however they are cut."""

from __future__ import annotations

import time
from email.message import EmailMessage

import httpx
import pytest
from container_stage import CARD, contents, events, unread
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.mime_parts import HEAD_LIMIT_BYTES, HEAD_LIMIT_LINES, LINE_LIMIT_BYTES
from mitmsec_addons.inflating import gzipped
from mitmsec_addons.mail_reader import LateMailReader, MailReader, begins_mail, may_begin_mail
from mitmsec_addons.packed_reader import PackedReader


def mail() -> bytes:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = "a@a.test", "b@b.test", "hi"
    made.set_content("Grüße, and a long line: " + "x" * 200)
    made.add_attachment(CARD * 40, maintype="application", subtype="octet-stream", filename="card.bin")
    inner = EmailMessage()
    inner["Subject"] = "inner"
    inner.set_content("forwarded")
    made.add_attachment(inner)
    return bytes(made)


@pytest.mark.parametrize("step", [1, 60, 1 << 16])
def test_attachments_come_out_decoded(step: int) -> None:
    assert begins_mail(mail()[:512])
    found = contents(MailReader(), mail(), step)
    assert [*found] == ["part 1", "card.bin", "part 3"]
    assert found["part 1"].decode().startswith("Grüße, and a long line: xxx")
    assert found["card.bin"] == CARD * 40
    assert b"Subject: inner" in found["part 3"]
    assert unread(MailReader(), mail(), step) == []


def test_a_mail_without_parts_is_one() -> None:
    plain = b"From: a\r\nTo: b\r\n\r\n" + CARD
    assert contents(MailReader(), plain) == {"part 1": CARD}


@pytest.mark.parametrize("step", [1, 1000, 1 << 16])
def test_binary_parts_of_a_real_client_come_out_as_they_are(step: int) -> None:
    binary = bytes(range(256)) * 600
    request = httpx.Request("POST", "http://h/", data={"field": "value"}, files={"upload": ("card.zip", binary)})
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    found = contents(MailReader(), head + request.read(), step)
    assert found["part 1"].rstrip() == b"value"
    assert found["card.zip"] == binary + b"\r\n"  # the boundary's own; no format minds


def test_base64_is_read_as_mail_programs_do() -> None:
    def read(body: bytes) -> bytes:
        return contents(MailReader(), b"From: a\nTo: b\nContent-Transfer-Encoding: BASE64\n\n" + body)["part 1"]

    assert read(b"aGVs\nbG8=\n") == b"hello"
    assert read(b"a G\nV!s\nbG8") == b"hello"  # no group is whole on its line, and padding is missing
    assert read(b"aGk=\naGk=\n") == b"hihi"
    assert read(b"a=\n") == b""


def test_lines_without_end_are_read_in_pieces() -> None:
    endless = b"y" * (3 * LINE_LIMIT_BYTES)
    assert contents(MailReader(), b"From: a\nTo: b\n\n" + endless, 1 << 20) == {"part 1": endless}
    assert contents(MailReader(), b"From: a\nTo: b\n\n" + endless, 50_000) == {"part 1": endless}


def test_what_is_too_much_or_cut_off_says_so() -> None:
    assert unread(MailReader(), b"A: b\n" + (b"x: " + b"y" * 900 + b"\n") * 80) == [
        f"more than {HEAD_LIMIT_BYTES} bytes or {HEAD_LIMIT_LINES} lines of header fields"
    ]
    cut = mail()[:-40]
    assert unread(MailReader(), cut) == ["cut off: its last part has no end"]
    deep = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (at, at) for at in range(20))
    assert unread(MailReader(), deep)[0] == "multipart in multipart, more than 16 times"


def test_a_field_with_too_many_parameters_is_told_soon() -> None:
    mail = b"From: a\nTo: b\nContent-Type: multipart/mixed" + b";" * 60_000 + b"\n\n" + CARD
    began_s = time.process_time()
    assert unread(MailReader(), mail, 1 << 16) == ["a header field of more than 64 parameters or 16384 bytes"]
    assert contents(MailReader(), mail, 1 << 16) == {"part 1": CARD}
    assert time.process_time() - began_s < 0.5


@pytest.mark.parametrize("encoding", [b"base64 (as ever)", b'"base64"', b"(c) BASE64;"])
def test_encodings_are_read_as_lenient_programs_do(encoding: bytes) -> None:
    made = b"From: a\nTo: b\nContent-Transfer-Encoding: " + encoding + b"\n\naGVsbG8=\n"
    assert contents(MailReader(), made) == {"part 1": b"hello"}
    assert unread(MailReader(), made) == []


def test_an_encoding_that_is_not_known_is_told() -> None:
    made = b"From: a\nTo: b\nContent-Transfer-Encoding: x-uuencode\n\nbegin 644 a\n"
    assert unread(MailReader(), made) == ["its transfer encoding is not known here"]


@pytest.mark.parametrize("step", [1, 1000, 1 << 16])
def test_long_fields_before_those_of_a_mail_hide_nothing(step: int) -> None:
    late = b"X-Long: " + b"y" * 3000 + b"\r\n z\r\n" + mail()
    assert may_begin_mail(late[:1024])
    assert contents(LateMailReader(MailReader()), late, step)["card.bin"] == CARD * 40
    assert may_begin_mail(b"one: line")
    assert not may_begin_mail(b"one: line\n\n")
    for none in (b"data: x\n\ndata: y\n", b"data: x", b"a: " + b"b" * 70_000):
        assert contents(LateMailReader(PackedReader(gzipped, "")), none, step) == {"content": b""}


@pytest.mark.parametrize(
    "head", [b"", b"GET / HTTP/1.1\r\nDate: x\r\nFrom: y\r\n", b"From: only one", b"key: value\nother: value\n"]
)
def test_what_only_looks_a_little_like_mail_is_none(head: bytes) -> None:
    assert not begins_mail(head)


PIECES = [
    b"Content-Type: multipart/mixed; boundary=b\n", b"Content-Transfer-Encoding: base64\n", b"\n", b"--b\n", b"--b--\n",
    b"Content-Disposition: attachment; filename*=utf-8''%ff\n", b"aGVsbG8=", b"=3D=\r\n", b"\xff\0", b"--", b"b",
    b"Content-Type: multipart/mixed; boundary*=\x00'\n",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14), st.integers(1, 60))
def test_hostile_bytes_are_read_the_same_however_they_are_cut(pieces: list[bytes], step: int) -> None:
    data = b"".join(pieces)
    assert events(MailReader(), data, step) == events(MailReader(), data, len(data) + 1)
