"""The head of a BER element (X.690 §8.1): its tag and its length, as LDAP restricts them (RFC 4511 §5.1)."""

from __future__ import annotations

from mitmsec.core.model import Value

LENGTH_BYTES_LIMIT = 4  # no message is longer than 4 GiB


class Header(Value, frozen=True):
    tag: int
    length: int  # of the content
    size_bytes: int  # of the head

    def of(self, element: bytes) -> bytes:
        """The content of the element that begins with this head, as far as it is there."""
        return element[self.size_bytes : self.size_bytes + self.length]


def header(data: bytes) -> Header | None:
    """The head that `data` begins with; None where it is not complete, or none that LDAP has: tags of one byte, and
    lengths that are said.
    """
    if len(data) < 2:
        return None
    first = data[1]
    if first < 0x80:
        return Header(tag=data[0], length=first, size_bytes=2)
    count = first - 0x80
    if not 0 < count <= LENGTH_BYTES_LIMIT or len(data) < 2 + count:
        return None
    return Header(tag=data[0], length=int.from_bytes(data[2 : 2 + count]), size_bytes=2 + count)
