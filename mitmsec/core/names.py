"""Host names as this product compares them: lower case, A-labels, no trailing dot.

What comes off the wire must already be ASCII (RFC 6066 §3, RFC 9110 §7.2); what a person writes into a policy may be
Unicode and is turned into A-labels (RFC 5890), or refused where that would take a guess.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from functools import lru_cache

NAME_LIMIT_CHARS = 253  # RFC 1035 §2.3.4: 255 octets on the wire, so 253 characters as text
ADDRESS_LIMIT_CHARS = 45  # of an IPv6 address that ends in an IPv4 one; a scope may make it longer
KNOWN_LIMIT = 1024
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")  # the underscore is no host name in RFC 952, but is in daily use
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label like this is read as an IPv4 address by resolvers
_A_LABEL_PREFIX = "xn--"


def parse_name(text: str) -> str | None:
    """`text` as a comparable host name, or None where it is none (an IP address is none)."""
    return _parsed(text) if 0 < len(text) <= NAME_LIMIT_CHARS + 1 else None


@lru_cache(KNOWN_LIMIT)
def _parsed(text: str) -> str | None:
    """A connection's name is read again and again: in its hello, for the policy, in each of its requests."""
    name = text.removesuffix(".")
    if not name.isascii() or not 0 < len(name) <= NAME_LIMIT_CHARS:
        return None
    labels = name.lower().split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or _NUMBER.fullmatch(labels[-1]):
        return None
    return ".".join(labels)


def is_address(text: str) -> bool:
    """Whether `text` is an IP address literal, with or without the brackets of a URL."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return _is_known_address(bare) if len(bare) <= ADDRESS_LIMIT_CHARS else _reads_as_address(bare)


@lru_cache(KNOWN_LIMIT)
def _is_known_address(bare: str) -> bool:
    """What a program calls by its address, it calls so each time."""
    return _reads_as_address(bare)


def _reads_as_address(bare: str) -> bool:
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return True


def written_name(text: str) -> str:
    """The host name that a person wrote, comparable. Raises ValueError with a sentence that says what to write."""
    if is_address(text):
        raise ValueError(f'"{text}" is an IP address; those stand under address')
    name = parse_name(".".join(_a_label(label) for label in text.removesuffix(".").split(".")))
    if name is None:
        raise ValueError(f'"{text}" is not a host name')
    return name


def parents(name: str) -> list[str]:
    """The names above `name`, nearest first: a.b.c gives b.c, c."""
    return name_and_parents(name)[1:]


def name_and_parents(name: str) -> list[str]:
    """The name, and those above it, nearest first: a.b.c gives a.b.c, b.c, c."""
    found = [name]
    _, dot, above = name.partition(".")
    while dot:
        found.append(above)
        _, dot, above = above.partition(".")
    return found


def _a_label(label: str) -> str:
    """IDNA2008 has no mapping step, so what is no lower-case letter, digit or mark is refused instead of guessed at."""
    if label.isascii():
        return label
    lower = unicodedata.normalize("NFC", label.lower())
    if lower != unicodedata.normalize("NFKC", lower) or not all(_in_a_name(char) for char in lower):
        raise ValueError(f'"{label}" has characters whose meaning in a host name is not certain; write it as xn--…')
    return _A_LABEL_PREFIX + lower.encode("punycode").decode("ascii")


def _in_a_name(char: str) -> bool:
    return char == "-" or unicodedata.category(char) in {"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"}
