"""What mitmproxy's messages decode for addons (`.content`, `.text`), and no more of it than a worker can hold.

    message.text ──► content coding undone ──► charset read ──► the addon
                          │                         └─ a codec that is none of text ──► ValueError
                          └─ more than DECODED_BYTES ──► TooLarge, which is a ValueError, as for mitmproxy's own

mitmproxy inflates without a limit, in one call that nothing interrupts, and keeps the last result. And it takes the
names of both from the message, for any codec of Python's: `charset=bz2` is a decompression bomb, too.
"""

from __future__ import annotations

import codecs

from mitmproxy.net import encoding as codings

from mitmsec.engine.content import Expands, Undecodable, decoder

DECODED_BYTES = 16 << 20
_NONE = ("", "none")
_SLOW = ("idna", "punycode")  # for names, in time that grows with the square of their length


class TooLarge(ValueError):
    """There would be too much of it."""


def bound() -> None:
    """From now on mitmproxy's messages in this process decode as `decode` does."""
    vars(codings)["decode"] = decode


def forget() -> None:
    """What was encoded last: mitmproxy keeps it."""
    vars(codings)["_cache"] = codings.CachedDecode(None, None, None, None)


def decode(encoded: bytes | str | None, encoding: str, errors: str = "strict") -> bytes | str | None:
    """Without the content coding, or as the text, that `encoding` names. Raises ValueError."""
    if encoded is None or encoding.lower() in _NONE:
        return encoded
    if not isinstance(encoded, bytes):
        raise TypeError(f"{type(encoded).__name__} is not decoded")
    try:
        step = decoder(encoding)
    except Undecodable:
        return _text(encoded, encoding, errors)
    made = bytearray()
    try:
        for piece in step.feed(encoded):
            made += piece
            if len(made) > DECODED_BYTES:
                raise TooLarge(f"more than {DECODED_BYTES >> 20} MiB when decoded")
    except Expands as error:
        raise TooLarge(str(error)) from None
    except Undecodable as error:
        raise ValueError(str(error)) from None
    return bytes(made)


def _text(encoded: bytes, encoding: str, errors: str) -> str:
    try:
        if codecs.lookup(encoding).name in _SLOW:
            raise ValueError(f"{encoding} is for names")
        return encoded.decode(encoding, errors)  # by a codec of text: others are refused before they are called
    except LookupError as error:
        raise ValueError(str(error)) from None
