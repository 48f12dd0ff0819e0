"""Envelopes as they lie on disk: zstd frames (RFC 8878), each by itself, against a dictionary of what all of them say.

An envelope names its fields and most of their values as every other one does; with these words given beforehand, a
frame is a fifth of it, and still any event is read alone. A frame says which dictionary it wants, so one that was ever
used stays here. It holds nothing that was seen on any machine: `python -m benchmarks.audit.dictionary` makes it.

    zstd -d -D mitmsec/audit/envelopes.zdict < FRAME       what a third party needs to read one
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import zstandard

from mitmsec.audit.envelope import ENVELOPE_LIMIT_BYTES

DICTIONARY = Path(__file__).with_name("envelopes.zdict")
LEVEL = 1  # higher ones save a tenth, for five times the work
FRAME_LIMIT_BYTES = ENVELOPE_LIMIT_BYTES + 1024  # what does not get smaller gets hardly larger


class Unpackable(Exception):
    """This is no envelope's frame."""


class Packing:
    """Packs and unpacks. For one thread."""

    def __init__(self) -> None:
        words = _words()
        self._compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=words)
        self._decompressor = zstandard.ZstdDecompressor(dict_data=words)

    def packed(self, envelope: bytes) -> bytes:
        """Its frame."""
        return self._compressor.compress(envelope)

    def unpacked(self, frame: object) -> bytes:
        """The envelope. Raises Unpackable, also for one that would be larger than any envelope."""
        if not isinstance(frame, bytes) or len(frame) > FRAME_LIMIT_BYTES:
            raise Unpackable("it is no frame")
        try:
            if not 0 < zstandard.frame_content_size(frame) <= ENVELOPE_LIMIT_BYTES:
                raise Unpackable("it is larger than an event can be, or does not say how large it is")
            return self._decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Unpackable(f"it cannot be decompressed: {error}") from error


@cache
def _words() -> zstandard.ZstdCompressionDict:
    words = zstandard.ZstdCompressionDict(DICTIONARY.read_bytes())
    words.precompute_compress(level=LEVEL)
    return words
