"""Each sign has what shows it, and what only looks like it: ordinary traffic shows none."""

from __future__ import annotations

import io
import re
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mitmsec.core.inspection import Part, PartKind
from mitmsec_addons import protocol_anomaly as pa
from mitmsec_addons.archives import Archives
from mitmsec_addons.protocol_anomaly import ALL, HEAD_BYTES, SIGNS, ProtocolAnomaly, Sign

HELLO = bytes.fromhex("16030100fa010000f60303") + bytes(240)
REQUEST = b"GET /admin HTTP/1.1\r\nAccept: */*\r\nHost: inner.test\r\n\r\n"


def part(kind: PartKind = PartKind.BODY, **more: str) -> Part:
    return Part(flow="f", kind=kind, sent=True, host="h.test", **more)  # type: ignore[arg-type]


HEAD, STREAM = part(PartKind.HEADERS), part(PartKind.STREAM)
OF_PART = part(PartKind.HEADERS, name="upload")
JSON = part(content_type="application/json")

SHOWN: list[tuple[Sign, Part, bytes]] = [
    (pa.FIELD_NAME, HEAD, b"X Y: a\r\n"),
    (pa.FIELD_NAME, HEAD, b"Ok: a\r\nT\xc3\xa9st: a\r\n"),
    (pa.FIELD_NAME, HEAD, b"no colon\r\n"),
    (pa.FIELD_NAME, HEAD, b": no name\r\n"),
    (pa.CONTROLS, HEAD, b"X: a\x00b\r\n"),
    (pa.CONTROLS, HEAD, b"X: a\rTransfer-Encoding: chunked\r\n"),
    (pa.CONTROLS, HEAD, b"X: a\nb\r\n"),
    (pa.REPEATED, HEAD, b"Host: a\r\nX: 1\r\nhost: b\r\n"),
    (pa.REPEATED, HEAD, b"content-length: 5\r\ncontent-length: 6\r\n"),
    (pa.TOO_MANY, HEAD, b"a: b\r\n" * 201),
    (pa.TOO_MANY, HEAD, b"a: " + b"b" * 33_000 + b"\r\n"),
    (pa.TLS, part(), HELLO),
    (pa.TLS, STREAM, HELLO),
    (pa.SSH, STREAM, b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"),
    (pa.SSH, part(content_type="application/octet-stream"), b"SSH-1.99-x\r\n"),
    (pa.HTTP2, STREAM, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0"),
    (pa.HTTP1, part(), REQUEST),
    (pa.HTTP1, STREAM, b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n"),
    (pa.TURNED, HEAD, 'Content-Disposition: attachment; filename="annual\u202efdp.exe"\r\n'.encode()),
    (pa.TURNED, OF_PART, b"content-disposition: form-data; name=a; filename*=UTF-8''a%E2%80%AEfdp.exe\r\n"),
    (pa.PATH, OF_PART, b'Content-Disposition: form-data; name="a"; filename="../../etc/passwd"\r\n'),
    (pa.PATH, HEAD, b"Content-Disposition: attachment; filename=..\\\\..\\\\run.bat\r\n"),
    (pa.PATH, HEAD, b"Content-Disposition: attachment; filename*=utf-8''x%2F..%2F..%2Fy\r\n"),
    (pa.PATH, HEAD, b'Content-Disposition: attachment; filename="C:\\\\autoexec.bat"\r\n'),
    (pa.PATH, HEAD, b'Content-Disposition: attachment; filename="/etc/cron.d/x"\r\n'),
    (pa.NO_JSON, JSON, b"\x1f\x8b\x08 packed"),
    (pa.NO_JSON, part(content_type="application/ld+json; charset=utf-8"), b'{"a": "\xff"}'),
    (pa.NO_JSON, JSON, b'{"a": "a tab\x0bstop"}'),
    (pa.TRACE, part(PartKind.URL, method="TRACE"), b"https://a.test/"),
    (pa.TRACE, part(PartKind.URL, method="Track"), b"https://a.test/"),
]

NOT_SHOWN: list[tuple[Part, bytes]] = [
    (HEAD, b""),
    (HEAD, b"x-very_odd!name~: a\r\nsec-ch-ua: \"Not A;Brand\";v=\"99\"\r\netag: W/\"x:y\"\r\nempty: \r\n"),
    (HEAD, "x-name: Grüße\tand a tab\r\n".encode()),
    (HEAD, b"set-cookie: a=1\r\n" * 300 + b"cookie: a\r\n" * 300),
    (HEAD, b"via: 1.1 a\r\nvia: 1.1 b\r\ncontent-length: 5\r\nContent-Length: 5\r\nlink: </a>\r\nlink: </b>\r\n"),
    (HEAD, b"authorization: Basic " + b"Q" * 8000 + b"\r\n"),
    (HEAD, b"Content-Disposition: attachment; filename=\"report 1..2.pdf\"; filename*=UTF-8''report%201..2.pdf\r\n"),
    (HEAD, "Content-Disposition: attachment; filename=\"דוח.pdf\"\r\n".encode()),  # right to left, by its letters
    (OF_PART, b"Subject: no token needed here\r\n folded\r\nX Y: a\r\n"),
    (part(), b"\x16\x03\x01 what"),
    (part(), b"text about SSH-2.0-OpenSSH"),
    (part(), b"\xd4\xc3\xb2\xa1" + HELLO),  # packets in a file
    (part(content_type="message/http"), REQUEST),
    (part(content_type="application/http; msgtype=request"), REQUEST),
    (part(name="requests.http"), REQUEST),
    (part(), b"GET /admin HTTP/1.1\r\nthat is how a log begins"),
    (part(), b'127.0.0.1 - - "GET / HTTP/1.1" 200'),
    (JSON, b""),
    (JSON, b'\xef\xbb\xbf{\r\n\t"a": "Gr\xc3\xbc\xc3\x9fe"}'),
    (JSON, b'{"a": "' + "ü".encode() * HEAD_BYTES + b'"}'),  # a letter is cut where reading ends
    (JSON, b")]}',\n[1]"),
    (part(content_type="application/json; charset=UTF-16"), '{"a": 1}'.encode("utf-16")),
    (part(content_type="text/plain"), b"\x00\x01"),
    (part(PartKind.URL, method="GET"), b"https://a.test/TRACE"),
    (STREAM, b"\0\x0e\x12\x34"),
]  # fmt: skip


def found(where: Part, *slices: bytes, words: tuple[str, ...] = ()) -> list[str]:
    reading = ProtocolAnomaly(words).open(where)
    seen = [*(one for piece in slices for one in reading.feed(piece)), *reading.close()]
    assert all(one.detector == "protocol_anomaly" and one.evidence == "" for one in seen)
    return [one.summary for one in seen]


def shown(sign: Sign) -> str:
    return f"{sign.summary} ({sign.source})"


@pytest.mark.parametrize(("sign", "where", "content"), SHOWN)
def test_each_sign_is_found_and_no_other(sign: Sign, where: Part, content: bytes) -> None:
    assert found(where, content) == [shown(sign)]
    assert found(where, content, words=(sign.word,)) == [shown(sign)]
    assert found(where, content, words=tuple(word for word in ALL if word != sign.word)) == []


@pytest.mark.parametrize(("where", "content"), NOT_SHOWN)
def test_what_only_looks_like_one_is_none(where: Part, content: bytes) -> None:
    assert found(where, content) == []


def test_every_sign_is_shown_and_says_where_that_stands() -> None:
    assert {sign for sign, _, _ in SHOWN} == set(SIGNS)
    assert all(re.search(r"RFC \d+ §|UAX #9", sign.source) for sign in SIGNS)


def test_names_of_what_lies_in_archives_are_looked_at() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("fine/../fine.txt", "\u202efdp.exe", "report..pdf"):
            archive.writestr(name, b"content")
    reading = Archives().open_within(part(), [Archives(), ProtocolAnomaly()])
    assert reading is not None
    told = [*reading.feed(packed.getvalue()), *reading.close()]
    assert [getattr(one, "summary", one) for one in told] == [shown(pa.PATH), shown(pa.TURNED)]


def test_words_that_it_has_not_are_an_error() -> None:
    with pytest.raises(ValueError, match="'heads, tunnels': protocol_anomaly finds heads, tunnels, names, contents"):
        ProtocolAnomaly(("heads, tunnels",))


def test_a_finding_says_where_it_was_made() -> None:
    (finding,) = ProtocolAnomaly().open(STREAM).feed(HELLO * 10)
    assert (finding.location, finding.severity, finding.confidence) == ("request.stream+0", pa.TLS.severity, 0.95)
    assert ProtocolAnomaly().open(HEAD).feed(b"X Y: a\r\n" * 1000) == ()


@given(st.sampled_from([(where, content) for _, where, content in SHOWN] + NOT_SHOWN), st.integers(1, 2000))
def test_it_finds_the_same_however_content_is_cut(case: tuple[Part, bytes], step: int) -> None:
    where, content = case
    pieces = [content[at : at + step] for at in range(0, len(content), step)]
    assert found(where, *pieces) == found(where, content)
