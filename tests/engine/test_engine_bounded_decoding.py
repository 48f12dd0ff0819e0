"""What addons read of messages: decoded as mitmproxy does, but for bombs."""

from __future__ import annotations

import bz2
import gzip
import zlib

import brotli
import pytest
import zstandard
from mitmproxy import http
from mitmproxy.net import encoding

from mitmsec.engine import bounded_decoding
from mitmsec.engine.bounded_decoding import TooLarge, decode

WORDS = "ein Wörtchen".encode()
ZEROS = bytes(1 << 21)
CODED = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": lambda content: zstandard.ZstdCompressor().compress(content),
    "identity": bytes,
    "none": bytes,
}


@pytest.fixture(autouse=True)
def mitmproxys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "decode", encoding.decode)  # put back afterwards
    bounded_decoding.bound()


def response(content: bytes, **fields: str) -> http.Response:
    return http.Response(b"HTTP/1.1", 200, b"", _headers(fields), content, None, 0, 0)


def _headers(fields: dict[str, str]) -> http.Headers:
    return http.Headers([(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()])


@pytest.mark.parametrize("coding", CODED)
def test_messages_read_as_ever(coding: str) -> None:
    made = response(CODED[coding](WORDS), content_encoding=coding, content_type="text/plain; charset=utf-8")
    assert made.content == WORDS
    assert made.text == "ein Wörtchen"
    made.text = "zwei Wörtchen"
    assert decode(made.raw_content, coding) == "zwei Wörtchen".encode()


BOMBS = {
    "brotli": response(brotli.compress(ZEROS, quality=1), content_encoding="br"),
    "gzip": response(gzip.compress(ZEROS), content_encoding="gzip"),
    "twice": response(gzip.compress(gzip.compress(ZEROS)), content_encoding="gzip, gzip"),
    "charset": response(gzip.compress(ZEROS), content_type="text/plain; charset=gzip"),
    "little": response(gzip.compress(bytes(range(256)) * 1024 + b"!", 1), content_encoding="gzip"),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_does_not_go_off(monkeypatch: pytest.MonkeyPatch, bomb: http.Response) -> None:
    monkeypatch.setattr(bounded_decoding, "DECODED_BYTES", 1 << 18 if bomb is BOMBS["little"] else 1 << 24)
    with pytest.raises(TooLarge):
        bomb.get_text()


@pytest.mark.parametrize("field", ["content_encoding", "content_type"])
@pytest.mark.parametrize("codec", ["bz2", "zlib", "hex", "rot13", "-Punycode", "no-such"])
def test_no_codec_of_pythons_is_called_that_reads_no_text(
    monkeypatch: pytest.MonkeyPatch, field: str, codec: str
) -> None:
    monkeypatch.setattr(bz2, "decompress", None)
    made = response(
        b"BZh9" + bytes(10), **{field: codec if field == "content_encoding" else f"text/x; charset={codec}"}
    )
    with pytest.raises(ValueError, match=r"text encoding|unknown|names"):
        made.get_text()


@pytest.mark.parametrize(("content", "name"), [(b"broken", "gzip"), (b"\xff", "utf-8")])
def test_what_is_broken_is_a_value_error(content: bytes, name: str) -> None:
    with pytest.raises(ValueError) as raised:
        decode(content, name)
    assert not isinstance(raised.value, TooLarge)


def test_what_is_no_bytes_is_none_or_a_mistake() -> None:
    assert decode(None, "gzip") is None
    with pytest.raises(TypeError):
        decode("text", "gzip")


def test_nothing_is_kept() -> None:
    made = response(b"", content_encoding="gzip")
    made.content = WORDS
    bounded_decoding.forget()
    assert WORDS not in encoding._cache
    assert made.content == WORDS
    assert WORDS not in encoding._cache
