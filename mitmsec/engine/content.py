"""Content codings (RFC 9110 §8.4) undone for inspectors, a bounded slice at a time.

What travels is never touched: this is a copy for looking at. A coding that is not known, that is broken, or that
expands beyond RATIO_LIMIT is `Undecodable`, and the caller's `on_failure` decides what becomes of the flow.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

SLICE_BYTES = 1 << 16
RATIO_LIMIT = 200
FREE_BYTES = 1 << 20  # so much may come out before the ratio counts
CODINGS_LIMIT = 3
_ZSTD_WINDOW_BYTES = 8 << 20
_ZSTD_STEP_BYTES = 128  # a block of four bytes can stand for 128 KiB


class Undecodable(Exception):
    """The content cannot be looked at; the text says why."""


class Expands(Undecodable):
    """There is too much behind little."""


class Decoder(Protocol):
    """Turns what travels into what is meant."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Slices of at most a few SLICE_BYTES. Raises Undecodable."""


def decoder(codings: str) -> Decoder:
    """A decoder for a Content-Encoding field's value. Raises Undecodable for a coding that is not known."""
    words = [word.strip().lower() for word in codings.split(",") if word.strip()]
    steps = [_STEPS.get(word) for word in reversed(words) if word != "identity"]
    if None in steps or len(steps) > CODINGS_LIMIT:
        raise Undecodable(f"content coding {codings[:64]!r} is not known")
    made: Decoder = Identity()
    for step in steps:
        if step is not None:
            made = _Chain(made, _Bounded(step()))
    return _Bounded(made)  # all of them together, too: what they unfold each, they would unfold times each other


def is_coded(codings: str) -> bool:
    """Content does not travel as it is meant, by a Content-Encoding field's value."""
    return any(word.strip().lower() not in ("", "identity") for word in codings.split(","))


class Identity:
    """Content that travels as it is meant."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        if data:
            yield data


class _Chain:
    def __init__(self, first: Decoder, then: Decoder) -> None:
        self._first, self._then = first, then

    def feed(self, data: bytes) -> Iterator[bytes]:
        for piece in self._first.feed(data):
            yield from self._then.feed(piece)


class _Bounded:
    """Counts what goes in and comes out."""

    def __init__(self, step: Decoder) -> None:
        self._step = step
        self._in_bytes = self._out_bytes = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._in_bytes += len(data)
        for piece in self._step.feed(data):
            self._out_bytes += len(piece)
            if self._out_bytes > FREE_BYTES + RATIO_LIMIT * self._in_bytes:
                raise Expands(f"expands more than {RATIO_LIMIT} times")
            yield piece


class Inflate:
    """gzip (RFC 1952, several members too), zlib (RFC 1950), or raw deflate where a server means that by `deflate`."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._state: Any = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._state is None:
                self._state = zlib.decompressobj(self._choose(data))
            try:
                piece = self._state.decompress(data, SLICE_BYTES)
            except zlib.error as error:
                raise Undecodable(str(error)) from None
            if piece:
                yield piece
            data = self._state.unconsumed_tail
            if self._state.eof:
                data = self._state.unused_data.lstrip(b"\0") if self._wbits > zlib.MAX_WBITS else b""
                self._state = None
                if not data:
                    return
            elif not piece and not data:
                return

    def _choose(self, data: bytes) -> int:
        if self._wbits != zlib.MAX_WBITS:
            return self._wbits
        is_zlib = data[0] & 0x0F == 8 and (len(data) < 2 or (data[0] << 8 | data[1]) % 31 == 0)
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


class Brotli:
    """RFC 7932, with the library that mitmproxy brings."""

    def __init__(self) -> None:
        import brotli

        self._state: Any = brotli.Decompressor()
        self._error: type[Exception] = brotli.error

    def feed(self, data: bytes) -> Iterator[bytes]:
        try:
            piece = self._state.process(data, output_buffer_limit=SLICE_BYTES)
            while piece or not self._state.can_accept_more_data():
                yield piece
                piece = b"" if self._state.is_finished() else self._state.process(b"", output_buffer_limit=SLICE_BYTES)
        except self._error as error:
            raise Undecodable(str(error) or "broken brotli") from None


class Zstandard:
    """RFC 8878, with the library that mitmproxy brings."""

    def __init__(self) -> None:
        import zstandard

        self._open: Callable[[], Any] = lambda: zstandard.ZstdDecompressor(
            max_window_size=_ZSTD_WINDOW_BYTES
        ).decompressobj(write_size=SLICE_BYTES)
        self._state: Any = self._open()
        self._error: type[Exception] = zstandard.ZstdError

    def feed(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), _ZSTD_STEP_BYTES):
            step = data[at : at + _ZSTD_STEP_BYTES]
            while step:
                try:
                    piece = self._state.decompress(step)
                except self._error as error:
                    raise Undecodable(str(error)) from None
                if piece:
                    yield piece
                step = self._state.unused_data if self._state.eof else b""
                if self._state.eof:
                    self._state = self._open()


_STEPS: dict[str, Callable[[], Decoder]] = {
    "br": Brotli,
    "deflate": lambda: Inflate(zlib.MAX_WBITS),
    "gzip": lambda: Inflate(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: Inflate(zlib.MAX_WBITS | 16),
    "zstd": Zstandard,
}
