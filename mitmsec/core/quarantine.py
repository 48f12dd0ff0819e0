"""Content under quarantine: who can open it, two at a time, and the file that it lies in.

    "mitmsec quarantine 1" newline
    the header, one line of JSON: whom it is sealed for, the shares of its key          readable
    pieces of SEALED_BYTES, the last one shorter: what was found, then the content      ChaCha20-Poly1305

Of n people any two can open it, and no one alone: the content's key is split in two for each pair of them, and each
half sealed to one of the pair.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from mitmsec.core.model import Value

MAGIC = b"mitmsec quarantine 1\n"
PUBLIC_BYTES = 32  # X25519
PEOPLE_MIN, PEOPLE_MAX = 2, 8
NAME_LIMIT_CHARACTERS = 64
PIECE_BYTES, TAG_BYTES = 1 << 16, 16
SEALED_BYTES = PIECE_BYTES + TAG_BYTES
HEADER_LIMIT_BYTES = 1 << 16
CONTENT_LIMIT_BYTES = 32 << 20
ITEM_LIMIT_BYTES = CONTENT_LIMIT_BYTES + (1 << 20)  # with all that is around it


class Recipient(Value, frozen=True):
    """One of those who can open, by a public key (X25519)."""

    name: str
    public: bytes

    @property
    def key(self) -> str:
        """`public` as a policy has it: in base64."""
        return base64.b64encode(self.public).decode()

    @property
    def written(self) -> str:
        """As a policy has it."""
        return f"{self.name}:{self.key}"


class Share(Value, frozen=True):
    """The halves of the content's key for one pair of recipients, by their numbers, each sealed to its own."""

    first: int
    second: int
    for_first: bytes
    for_second: bytes


class Header(Value, frozen=True):
    """What everybody may read of an item. `ephemeral`: the public key that the shares were sealed with."""

    item: str
    recipients: tuple[Recipient, ...]
    ephemeral: bytes
    shares: tuple[Share, ...]
    content_bytes: int
    is_whole: bool
    """All of what was found is in it."""


class About(Value, frozen=True):
    """What stands before the content, sealed as it is: one line of JSON. `content_bytes` follow."""

    flow: str
    rule: str
    detector: str
    summary: str
    location: str
    host: str
    method: str
    url: str
    content_type: str
    codings: str  # under which the content travels
    name: str
    sent: bool
    begins_at: int = 0  # so many bytes came before the content that is here


class Malformed(ValueError):
    """What was to be read is none; the text says why."""


def parse_recipient(text: str) -> Recipient:
    """`alice:BASE64`. Raises Malformed."""
    name, mark, key = text.rpartition(":")
    try:
        public = base64.b64decode(key, validate=True)
    except binascii.Error:
        public = b""
    if not mark or not name or len(name) > NAME_LIMIT_CHARACTERS or not name.isprintable():
        raise Malformed('a name and a public key are wanted: "alice:…", as `mitmsec quarantine keys alice` prints it')
    if len(public) != PUBLIC_BYTES:
        raise Malformed(f"the key of {name} is not {PUBLIC_BYTES} bytes in base64")
    return Recipient(name=name, public=public)


def pairs(count: int) -> Iterator[tuple[int, int]]:
    """Of so many recipients, by their numbers."""
    return itertools.combinations(range(count), 2)


def preamble(header: Header) -> bytes:
    """What precedes the sealed pieces."""
    return MAGIC + msgspec.json.encode(header) + b"\n"


def parse_preamble(content: bytes) -> tuple[Header, int]:
    """Of a file that begins with `content`: the header, and where the pieces begin. Raises Malformed."""
    end = content.find(b"\n", len(MAGIC), len(MAGIC) + HEADER_LIMIT_BYTES)
    if not content.startswith(MAGIC) or end < 0:
        raise Malformed("it is no content under quarantine, or of another version")
    try:
        header = msgspec.json.decode(content[len(MAGIC) : end], type=Header)
    except msgspec.MsgspecError as error:
        raise Malformed(f"its header is damaged: {error}") from None
    count = len(header.recipients)
    if any(not 0 <= number < count for share in header.shares for number in (share.first, share.second)):
        raise Malformed("its header is damaged: a share of nobody's")
    _check_people(header.recipients)
    return header, end + 1


def _check_people(recipients: Sequence[Recipient]) -> None:
    """As many people as it says: by one key under two names one person would be two. Raises Malformed."""
    for one in recipients:
        parse_recipient(one.written)
    count = len(recipients)
    if any(
        len(set(those)) != count for those in ([one.name for one in recipients], [one.public for one in recipients])
    ):
        raise Malformed("its header is damaged: somebody is in it twice")


def about_line(about: About) -> bytes:
    """It, in front of the content."""
    return msgspec.json.encode(about) + b"\n"


def parse_about(line: bytes) -> About:
    """Raises Malformed."""
    try:
        return msgspec.json.decode(line, type=About)
    except msgspec.MsgspecError as error:
        raise Malformed(f"what it says of itself is damaged: {error}") from None


def in_pieces(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Runs of exactly PIECE_BYTES, at the end of what is left, perhaps nothing; and whether it is the last one."""
    waiting = b""
    for chunk in chunks:
        waiting += chunk
        begin = 0
        while len(waiting) - begin > PIECE_BYTES:
            yield waiting[begin : begin + PIECE_BYTES], False
            begin += PIECE_BYTES
        waiting = waiting[begin:]
    yield waiting, True
